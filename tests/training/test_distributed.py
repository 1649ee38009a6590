"""Training on two processes: every kind learns the same as one process with the whole batch."""

from __future__ import annotations

import json
import math
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from cabm.errors import InputError, PeerLost
from cabm.models import Backbone, build_model
from cabm.models.transfer import transfer_weights
from cabm.project.schedule import Schedule
from cabm.quant import Precision
from cabm.training.calibration import calibrate
from cabm.training.group import Group
from cabm.training.loop import Progress, TrainingPlan, train
from cabm.training.losses import LossWeights, Objective

STEPS = 6
CASES = {
    "float": ("edsr", Precision("float")),
    "pams": ("edsr", Precision("pams")),
    "cadyq": ("edsr", Precision("cadyq")),
    "cabm": ("edsr", Precision("cabm")),
    "float with batch norm": ("srresnet", Precision("float")),
    "cadyq with batch norm": ("srresnet", Precision("cadyq")),
}


class Stop(Exception):
    """Stands for a kill."""


class Patches:
    """A share of random patches, a pure function of the step; the second share has more contrast."""

    def __init__(self, group: Group) -> None:
        size = 4 // group.size
        self.share = slice(group.rank * size, (group.rank + 1) * size)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        contrast = torch.tensor([0.2, 0.4, 0.7, 1.0]).view(4, 1, 1, 1)
        low = torch.rand(4, 3, 10, 10, generator=generator).mul(255).mul(contrast)
        high = nn.functional.interpolate(low, scale_factor=2, mode="bilinear")
        return low.round().byte()[self.share], high.round().byte()[self.share]


def bits_by_contrast(search_space: tuple[int, ...], low_resolution: Tensor) -> Tensor:
    """The least width for the smooth half of the batch, eight for the rest: no share uses both."""
    smooth = low_resolution.amax(dim=(1, 2, 3)) < 127
    return torch.where(smooth[:, None], search_space[0], 8).repeat(1, 4)


def start(case: str, group: Group) -> tuple[Backbone, Objective]:
    backbone, precision = CASES[case]
    torch.manual_seed(0)
    options = {"num_features": 8, "num_blocks": 2}
    plain = build_model(backbone, 2, Precision("float"), options)
    model = build_model(backbone, 2, precision, options)
    if unset := transfer_weights(plain, model):
        calibrate(model, Patches(Group()), 2, only=set(unset))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".selector." in name:
                parameter.copy_(torch.randn(parameter.shape))  # widths differ by sample and position
    plainly = precision.kind == "float"
    weights = LossWeights() if plainly else LossWeights(feature=1000, blocks=100, bits=0.1)
    bits = partial(bits_by_contrast, precision.search_space) if precision.kind == "cabm" else None
    objective = Objective(weights, None if plainly else plain.eval(), bits, group.size)
    return model.to(memory_format=torch.channels_last), objective


def learn(
    case: str,
    group: Group,
    *,
    resume_file: Path | None = None,
    stop_at: int | None = None,
    disturbed: bool = False,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Return the weights that a training ends with, and the parts of its losses."""
    parts: list[dict[str, float]] = []

    def look(progress: Progress) -> None:
        parts.append(dict(progress.parts))
        if progress.step == stop_at:
            raise Stop

    model, objective = start(case, group)
    if disturbed:
        with torch.no_grad():
            model.head.weight.add_(1.0)
    plan = TrainingPlan(
        steps=STEPS,
        rates={"weights": 1e-3, "alpha": 1e-2, "selector": 1e-2},
        schedule=Schedule(warmup=0.2),
        ema_decay=0.9,
        checkpoint_seconds=0.0,
    )
    try:
        train(
            model,
            objective,
            Patches(group),
            plan,
            callbacks=(look,),
            resume_file=resume_file,
            group=group,
        )
    except Stop:
        assert stop_at is not None
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, parts


def work(rank: int, folder: Path) -> None:
    """Run as one of two processes, and write all results that the tests check to ``folder``."""
    torch.set_num_threads(1)
    group = Group(rank, 2)

    def meet(name: str, seconds: float) -> None:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder / name}",
            rank=rank,
            world_size=2,
            timeout=timedelta(seconds=seconds),
        )

    meet("first", 300)
    for case in CASES:
        # the second process starts with other weights, and must get the first one's
        weights, parts = learn(case, group, disturbed=rank == 1)
        save_file(weights, folder / f"{case}.{rank}.safetensors")
        (folder / f"{case}.{rank}.json").write_text(json.dumps(parts))

    learn("cadyq", group, resume_file=folder / f"two.{rank}.safetensors", stop_at=4)
    if rank == 0:
        (folder / "two.safetensors").write_bytes((folder / "two.0.safetensors").read_bytes())
    weights, _ = learn("cadyq", group, resume_file=folder / f"two.{rank}.safetensors")
    save_file(weights, folder / f"resumed.{rank}.safetensors")
    weights, _ = learn("cadyq", group, resume_file=folder / "one.safetensors")
    save_file(weights, folder / f"from_one.{rank}.safetensors")

    (folder / f"talk.{rank}.json").write_text(json.dumps(talk(group)))
    distributed.destroy_process_group()
    meet("second", 3)
    group.mean({})
    if rank == 0:
        with pytest.raises(PeerLost, match="does not answer"):
            group.mean({"waited": 1.0})
        (folder / "given_up").touch()
    while not (folder / "given_up").exists():
        time.sleep(0.1)


def talk(group: Group) -> dict[str, object]:
    """Return the result of each exchange."""
    first, unused, second = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    first.grad = torch.tensor([1.0, 2.0]) * (group.rank + 1)
    second.grad = torch.tensor([4.0, 6.0]) * group.rank
    group.average_gradients([first, unused, second])
    try:
        group.require_same(f"file {group.rank}", "weights")
        refused = ""
    except InputError as error:
        refused = str(error)
    group.require_same("file", "weights")
    return {
        "gradients": [first.grad.tolist(), unused.grad, second.grad.tolist()],
        "mean": group.mean({"a": group.rank, "b": 0.1}),
        "spread": math.isnan(group.mean({"l1": math.nan if group.rank == 1 else 1.0})["l1"]),
        "from_leader": group.from_leader(b"abc" if group.leads else b"").decode(),
        "nothing": group.from_leader(b"").decode(),
        "gathered": group.gather(["x"] * group.rank),
        "refused": refused,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two processes."""
    folder = tmp_path_factory.mktemp("two")
    learn("cadyq", Group(), resume_file=folder / "one.safetensors", stop_at=4)
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    return folder


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        error = (tensor.double() - expected[name]).abs().max().item()
        assert error <= 1e-5 + 1e-4 * expected[name].abs().max().item(), f"{name}: {error}"


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_learns_from_the_whole_batch(case: str, folder: Path) -> None:
    expected, losses = learn(case, Group())
    assert_close(load_file(folder / f"{case}.0.safetensors"), expected)
    found = json.loads((folder / f"{case}.0.json").read_text())
    assert len(found) == STEPS
    for step, parts in enumerate(found):
        assert parts == pytest.approx(losses[step], rel=1e-5), step


@pytest.mark.parametrize("case", CASES)
def test_both_processes_end_with_the_same_bits_and_have_seen_the_same_losses(
    case: str, folder: Path
) -> None:
    first, second = (load_file(folder / f"{case}.{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    first, second = ((folder / f"{case}.{rank}.json").read_text() for rank in (0, 1))
    assert first == second


def test_shares_use_different_widths(folder: Path) -> None:
    """Or the tests above would not see a clip value that one process alone reaches."""
    low, _ = Patches(Group()).batch(0)
    assert bits_by_contrast((4, 6, 8), low.float())[:, 0].tolist() == [4, 4, 8, 8]
    fabs = [parts["fab"] for parts in json.loads((folder / "cadyq.0.json").read_text())]
    assert min(fabs) < 8


def test_interrupted_run_ends_with_the_same_bits(folder: Path) -> None:
    unbroken = load_file(folder / "cadyq.0.safetensors")
    for rank in (0, 1):
        resumed = load_file(folder / f"resumed.{rank}.safetensors")
        assert all(torch.equal(tensor, unbroken[name]) for name, tensor in resumed.items())
    assert not (folder / "two.1.safetensors").exists(), "only the leader writes"


def test_resume_state_serves_another_number_of_processes(folder: Path) -> None:
    expected, _ = learn("cadyq", Group())
    weights, parts = learn("cadyq", Group(), resume_file=folder / "two.safetensors")
    assert len(parts) == STEPS - 3, "it resumed"
    assert_close(weights, expected)
    assert_close(load_file(folder / "from_one.0.safetensors"), expected)


def test_exchanges(folder: Path) -> None:
    first, second = (json.loads((folder / f"talk.{rank}.json").read_text()) for rank in (0, 1))
    for found in (first, second):
        assert found["gradients"] == [[1.5, 3.0], None, [2.0, 3.0]]
        assert found["mean"] == {"a": 0.5, "b": 0.1}
        assert found["spread"], "one share's NaN stops all processes"
        assert found["from_leader"] == "abc" and found["nothing"] == ""
        assert found["gathered"] == [[], ["x"]]
    assert first["refused"].startswith("processes 0 and 1 differ in weights")


def test_a_process_that_does_not_answer_is_given_up(folder: Path) -> None:
    assert (folder / "given_up").exists()


def test_one_process_exchanges_nothing() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    Group().average_gradients([parameter])
    assert parameter.grad is None
    values = {"a": 1.0}
    assert Group().mean(values) is values
    assert Group().from_leader(b"x") == b"x" and Group().gather(3) == [3]
