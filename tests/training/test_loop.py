"""The training loop: it learns, resumes to the same bits, and stops if a value is not finite."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cabm.errors import TrainingDiverged
from cabm.models import Backbone, build_model
from cabm.models.transfer import transfer_weights
from cabm.project.schedule import Schedule
from cabm.quant import Kind, Precision
from cabm.training.calibration import MIN_ALPHA, calibrate
from cabm.training.loop import Progress, TrainingPlan, parameter_group, train
from cabm.training.losses import LossWeights, Objective

OPTIONS = {"num_features": 8, "num_blocks": 2}


class Patches:
    """Smooth random patches, a pure function of the step."""

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        low = torch.rand(4, 3, 10, 10, generator=generator).mul(255)
        high = torch.nn.functional.interpolate(low, scale_factor=2, mode="bilinear")
        return low.round().byte(), high.round().byte()


class Stop(Exception):
    """Stands for a kill."""


def make(kind: Kind) -> tuple[Backbone, Objective]:
    torch.manual_seed(0)
    plain = build_model("edsr", 2, Precision("float"), OPTIONS)
    model = build_model("edsr", 2, Precision(kind), OPTIONS)
    unset = transfer_weights(plain, model)
    if unset:
        calibrate(model, Patches(), 2, only=set(unset))
    bits = None
    if kind == "cabm":
        bits = lambda low: torch.tensor([4, 8]).repeat(len(low), 2)  # noqa: E731
    # the layout of the stages, which a resumed training must keep
    model = model.to(memory_format=torch.channels_last)
    weights = LossWeights(bits=1e-3) if kind == "float" else LossWeights(1000, 100, 1e-3)
    return model, Objective(weights, None if kind == "float" else plain.eval(), bits)


def plan(steps: int = 6, **changes: object) -> TrainingPlan:
    values = {
        "steps": steps,
        "rates": {"weights": 1e-3, "alpha": 1e-2, "selector": 1e-2},
        "schedule": Schedule(warmup=0.2),
        "ema_decay": 0.9,
        "checkpoint_seconds": 0.0,
    }
    return TrainingPlan(**values | changes)


@pytest.mark.parametrize("kind", ["float", "pams", "cadyq", "cabm"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_interrupted_run_ends_with_the_same_bits(
    kind: Kind, autocast: torch.dtype | None, tmp_path: Path
) -> None:
    model, objective = make(kind)
    expected = train(model, objective, Patches(), plan(autocast=autocast)).state_dict()

    def stop_at(step: int):
        def callback(progress: Progress) -> None:
            progress.history.append({"step": progress.step})
            if progress.step == step:
                raise Stop

        return callback

    resume = tmp_path / "state.safetensors"
    for step in (2, 3, 5):
        model, objective = make(kind)
        with pytest.raises(Stop):
            train(
                model,
                objective,
                Patches(),
                plan(autocast=autocast),
                callbacks=(stop_at(step),),
                resume_file=resume,
            )
    seen: list[dict] = []
    model, objective = make(kind)
    train(
        model,
        objective,
        Patches(),
        plan(autocast=autocast),
        callbacks=(lambda progress: seen.extend(progress.history[-1:]),),
        resume_file=resume,
    )
    assert seen[-1]["step"] == 4, "the history up to the last checkpoint survives"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_damaged_resume_state_starts_over(tmp_path: Path) -> None:
    model, objective = make("float")
    expected = train(model, objective, Patches(), plan()).state_dict()
    resume = tmp_path / "state.safetensors"
    resume.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{broken")
    model, objective = make("float")
    train(model, objective, Patches(), plan(checkpoint_seconds=100), resume_file=resume)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected.values(), strict=True)
    )
    assert not resume.exists()


def test_a_finished_run_that_could_not_save_keeps_its_history(tmp_path: Path) -> None:
    """No step is left to train, so no callback runs."""
    resume = tmp_path / "state.safetensors"

    def note(progress: Progress) -> None:
        progress.history.append({"step": progress.step})

    model, objective = make("float")
    expected = train(
        model, objective, Patches(), plan(), callbacks=(note,), resume_file=resume
    ).state_dict()
    model, objective = make("float")
    history: list[dict] = []
    again = train(
        model, objective, Patches(), plan(), callbacks=(note,), resume_file=resume, history=history
    ).state_dict()
    assert [row["step"] for row in history] == list(range(1, plan().steps + 1))
    assert all(torch.equal(a, b) for a, b in zip(again.values(), expected.values(), strict=True))


def test_training_lowers_the_loss() -> None:
    model, objective = make("float")
    losses: list[float] = []
    train(
        model,
        objective,
        Patches(),
        plan(steps=60, rates={"weights": 5e-3}, ema_decay=0.0),
        callbacks=(lambda progress: losses.append(progress.parts["l1"]),),
    )
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_bit_loss_drives_bits_down() -> None:
    model, _ = make("cadyq")
    strong = Objective(LossWeights(bits=10.0), None)
    fabs: list[float] = []
    rates = {"weights": 1e-6, "alpha": 1e-6, "selector": 0.2}
    train(
        model,
        strong,
        Patches(),
        plan(steps=30, rates=rates, ema_decay=0.0),
        callbacks=(lambda progress: fabs.append(progress.parts["fab"]),),
    )
    assert fabs[0] == 8 and fabs[-1] < 6


def test_callbacks_and_the_result_hold_the_average() -> None:
    model, objective = make("float")
    last: dict[str, Tensor] = {}

    def keep(progress: Progress) -> None:
        last.update({name: tensor.clone() for name, tensor in progress.weights.items()})

    train(model, objective, Patches(), plan(), callbacks=(keep,))
    assert all(torch.equal(tensor, last[name]) for name, tensor in model.state_dict().items())


def test_loss_that_is_not_finite_stops_and_is_named() -> None:
    model, objective = make("float")
    with torch.no_grad():
        model.tail.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match=r"step 1: loss l1 is not finite"):
        train(model, objective, Patches(), plan())


def test_clip_values_stay_positive() -> None:
    model, objective = make("pams")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter_group(name) == "alpha":
                parameter.fill_(1e-3)
    train(model, objective, Patches(), plan(rates={"weights": 0.0, "alpha": 1.0}, ema_decay=0.0))
    alphas = [p for name, p in model.named_parameters() if parameter_group(name) == "alpha"]
    assert all((alpha >= MIN_ALPHA).all() for alpha in alphas)


def test_calibration_is_the_mean_of_the_samples_peaks() -> None:
    model, _ = make("pams")
    peaks: list[Tensor] = []
    block = model.body[0]
    hook = block.act1.register_forward_pre_hook(
        lambda _, inputs: peaks.append(inputs[0].abs().amax((1, 2, 3)))
    )
    found = calibrate(model, Patches(), 3, only={"body.0.act1.alpha"})
    hook.remove()
    assert list(found) == ["body.0.act1.alpha"]
    assert found["body.0.act1.alpha"] == [pytest.approx(torch.cat(peaks).double().mean().item(), rel=1e-6)]
    assert block.act1.alpha.tolist() == pytest.approx(found["body.0.act1.alpha"], rel=1e-6)


def test_calibration_by_error_beats_the_peak_at_every_width() -> None:
    model, _ = make("cadyq")
    inputs: list[Tensor] = []
    position = model.body[1].act2
    hook = position.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    by_peak = calibrate(model, Patches(), 2, method="peak")["body.1.act2.alpha"]
    by_error = calibrate(model, Patches(), 2, method="error")["body.1.act2.alpha"]
    hook.remove()
    x = torch.cat(inputs[:2])

    def error(alpha: float, bits: int) -> float:
        n = 2 ** (bits - 1) - 1
        return ((x.clamp(-alpha, alpha) / alpha * n).round() * alpha / n - x).square().mean().item()

    for bits, peak, best in zip((4, 6, 8), by_peak, by_error, strict=True):
        assert error(best, bits) <= error(peak, bits) * 1.02
    assert by_error[0] < by_error[2] <= x.abs().max().item() * 1.001
    assert error(by_error[0], 4) < 0.8 * error(by_peak[0], 4)


def test_calibration_refuses_dead_activations() -> None:
    model, _ = make("pams")
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    with pytest.raises(TrainingDiverged, match=r"calibration of body\.0\.act1\.alpha"):
        calibrate(model, Patches(), 1)


def test_schedules() -> None:
    halve = Schedule(kind="halve", halve_at=(0.5, 0.75))
    assert [halve.factor(step, 8) for step in range(8)] == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    cosine = Schedule(kind="cosine", warmup=0.1, final=0.25)
    factors = [cosine.factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == 1.0 == factors[10]
    assert factors[-1] == pytest.approx(0.25)
    assert all(a >= b for a, b in pairwise(factors[10:]))
