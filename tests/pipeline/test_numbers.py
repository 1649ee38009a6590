"""Values that are not finite or make no sense: named, and refused before they overwrite a good file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from cabm.checkpoints.model_directory import load_model
from cabm.data.prepare import prepare
from cabm.data.sources import PrepareSettings
from cabm.data.store import PackedStore, pack
from cabm.errors import InputError, TrainingDiverged
from cabm.evaluation.store import MAX_PSNR
from cabm.files import sha256_file
from cabm.imaging.images import write_image
from cabm.imaging.resize import downscale
from cabm.models import Backbone, build_model
from cabm.models.transfer import transfer_weights
from cabm.pipeline.stage import Stage
from cabm.project.params import load_params
from cabm.project.schedule import Schedule
from cabm.project.sections import EvaluateSettings
from cabm.quant import Kind, Precision
from cabm.tables.bypass import choose_bypass
from cabm.tables.observations import MEASURES, Observations
from cabm.tables.table import build_table
from cabm.tracking.tracker import NullTracker
from cabm.training.calibration import calibrate
from cabm.training.loop import Progress, TrainingPlan, train
from cabm.training.losses import LossWeights, Objective
from cabm.training.validation import Validation
from tests.conftest import REPOSITORY
from tests.upscaling.helpers import photo, tiny_model

OPTIONS = {"num_features": 8, "num_blocks": 2}
SCALE = 2


class OneColour:
    """Batches of patches of one gray."""

    def __init__(self, level: int) -> None:
        self.level = level

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        low = torch.full((2, 3, 10, 10), self.level, dtype=torch.uint8)
        return low, low.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)


def model_and_objective(kind: Kind, sampler: OneColour) -> tuple[Backbone, Objective]:
    torch.manual_seed(0)
    plain = build_model("edsr", SCALE, Precision("float"), OPTIONS)
    model = build_model("edsr", SCALE, Precision(kind), OPTIONS)
    unset = transfer_weights(plain, model)
    if unset:
        calibrate(model, sampler, 2, only=set(unset), method="error")
    bits = None
    if kind == "cabm":
        bits = lambda low: torch.tensor([4, 8]).repeat(len(low), 2)  # noqa: E731
    weights = LossWeights(bits=1e-3) if kind == "float" else LossWeights(1000, 100, 1e-3)
    return model, Objective(weights, None if kind == "float" else plain.eval(), bits)


def plan(steps: int = 4) -> TrainingPlan:
    rates = {"weights": 1e-3, "alpha": 1e-2, "selector": 1e-2}
    return TrainingPlan(steps=steps, rates=rates, schedule=Schedule(), checkpoint_seconds=0.0)


def resumed(state: Path) -> tuple[Backbone, list[int]]:
    """Train with a resume state; return the model and the steps that were taken."""
    seen: list[int] = []
    model, objective = model_and_objective("float", OneColour(128))
    note = lambda progress: seen.append(progress.step)  # noqa: E731
    train(model, objective, OneColour(128), plan(), callbacks=(note,), resume_file=state)
    return model, seen


@pytest.mark.parametrize("kind", ["float", "pams", "cadyq", "cabm"])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_training_on_one_colour_stays_finite(kind: Kind, level: int) -> None:
    model, objective = model_and_objective(kind, OneColour(level))
    train(model, objective, OneColour(level), plan())  # raises where a number is not finite
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_weight_that_goes_wrong_does_not_reach_the_resume_state(poison: float, tmp_path: Path) -> None:
    """The loss of a step is finite, but the weights after it are not, as after a bad gradient."""
    state = tmp_path / "state.safetensors"
    model, objective = model_and_objective("float", OneColour(128))

    def spoil(progress: Progress) -> None:
        if progress.step == 3:
            model.tail.weight.data[0, 0, 0, 0] = poison

    with pytest.raises(TrainingDiverged, match=r"tail\.weight has values that are not finite"):
        train(model, objective, OneColour(128), plan(), callbacks=(spoil,), resume_file=state)
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(state).values())

    _, seen = resumed(state)
    assert seen == [3, 4], "it resumes before the step that failed"


@pytest.mark.parametrize("damage", ["nan", "shape", "missing", "unknown", "step", "history", "metadata"])
def test_a_resume_state_that_does_not_fit_starts_the_run_over(damage: str, tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    model, objective = model_and_objective("float", OneColour(128))
    expected = train(model, objective, OneColour(128), plan(), resume_file=state).state_dict()
    tensors = load_file(state)
    metadata = {"format": "cabm.resume/1", "step": "3", "history": "[]"}
    name = "model.tail.weight"
    match damage:
        case "nan":
            tensors["optimizer.0.exp_avg"].fill_(float("nan"))
        case "shape":
            tensors[name] = tensors[name][:1].clone()
        case "missing":
            del tensors[name]
        case "unknown":
            tensors["model.more"] = torch.zeros(1)
        case "step":
            metadata["step"] = "three"
        case "history":
            metadata["history"] = "[" * 100_000
        case _:
            del metadata["step"]
    save_file(tensors, state, metadata)
    model, seen = resumed(state)
    assert seen == [1, 2, 3, 4]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_illegal_clip_values_are_refused(value: float, tmp_path: Path) -> None:
    directory = tiny_model(tmp_path / "m")
    weights = directory / "model.safetensors"
    tensors = load_file(weights)
    tensors["body.0.act1.alpha"][1] = value
    save_file(tensors, weights)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"weights_sha256": sha256_file(weights)}))
    with pytest.raises(InputError, match=r"body\.0\.act1\.alpha (is not positive|has values that are not)"):
        load_model(directory)


def observations(scores: list[float]) -> Observations:
    count = len(scores)
    return Observations(
        scores=scores,
        bits=np.tile([4, 4, 6, 8], (count, 1)),
        images=["a"] * count,
        backbone="edsr",
        scale=SCALE,
        search_space=(4, 6, 8),
        layers=tuple(f"body.{block}.conv{number}" for block in (0, 1) for number in (1, 2)),
        tile=24,
        stride=22,
        part=24,
        measures={name: np.ones((count, 1, 1)) for name in MEASURES},
    )


@pytest.mark.parametrize("strategy", ["lowest", "majority", "monotone"])
@pytest.mark.parametrize("scores", [[0.0, 0.0], [0.0, 40.0], [255.0]])
def test_edge_scores_that_were_not_observed_have_bits(strategy: str, scores: list[float]) -> None:
    seen = observations(scores)
    table = build_table(seen, strategy=strategy)
    assert choose_bypass(seen, max_loss_db=0.1, max_tile_loss_db=0.3) is None
    assert np.isin(table.lookup(np.linspace(0, 255, 511)), (4, 6, 8)).all()


def test_no_observation_left_is_named() -> None:
    seen = observations([1.0, 2.0])
    with pytest.raises(InputError, match="fab_cap 4: no observed row of bits is below it"):
        build_table(seen, fab_cap=4.0)
    with pytest.raises(InputError, match="nothing to build a table from"):
        build_table(observations([]))


def flat(height: int, width: int, level: int = 90) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def store_of(directory: Path, *images: np.ndarray) -> PackedStore:
    pairs = [(f"image{number}", image, downscale(image, SCALE)) for number, image in enumerate(images)]
    return pack(pairs, directory, SCALE)


def test_images_too_small_to_be_measured_are_refused_before_training(tmp_path: Path) -> None:
    message = (
        "image image0 of 14x16 pixels is too small to be measured at scale 2; use images of at least 15x15"
    )
    store = store_of(tmp_path / "store", flat(16, 14))
    model = build_model("edsr", SCALE, Precision("float"), OPTIONS)
    with pytest.raises(InputError, match=message):
        Validation(store, model, None, EvaluateSettings(), None)

    write_image(tmp_path / "photos" / "image0.png", flat(16, 14))
    folder = {"source": "folder", "path": tmp_path / "photos"}
    settings = PrepareSettings(train=[folder], validation=folder, test=[folder])
    with pytest.raises(InputError, match=f"prepare.validation: {message}"):
        prepare(settings, SCALE, tmp_path / "prepared", lambda *_: None)
    assert not (tmp_path / "prepared" / "validation").exists()


@pytest.fixture()
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Four tiny models, a table and observations: the inputs of the stage evaluate."""
    monkeypatch.chdir(tmp_path)
    kinds = {"full_precision": "float", "pams": "pams", "cadyq": "cadyq", "cabm": "cabm"}
    for stage, kind in kinds.items():
        tiny_model(tmp_path / "models" / stage, kind)
    seen = observations([0.0, 3.0, 9.0])
    seen.save(tmp_path / "tables" / "observations.npz")
    build_table(seen).save(tmp_path / "tables" / "edge_to_bit.json")
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["model"]["scale"] = SCALE
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return Stage("evaluate", load_params(), NullTracker())


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("smaller than a tile", photo(40, 34)),
        ("as small as can be", photo(16, 16)),
        ("one colour", flat(48, 60)),
        ("black", flat(48, 60, 0)),
    ],
)
def test_a_test_set_of_one_odd_image_is_evaluated(name: str, image: np.ndarray, project: Stage) -> None:
    from cabm.pipeline.evaluate import evaluate

    store_of(project.data / "test" / "odd", image)
    evaluate(project)
    rows = json.loads((project.results / "quality.json").read_text())["results"]["tiles"]["odd"]
    assert all(0 <= row["psnr"] <= MAX_PSNR and row["ssim"] <= 1 for row in rows.values())
    if name in ("one colour", "black"):
        assert rows["bicubic"]["psnr"] == MAX_PSNR
    assert "<h1>" in (project.results / "report.html").read_text()


def test_a_validation_set_of_one_colour_is_measured(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", flat(48, 60, 0))
    model = build_model("edsr", SCALE, Precision("float"), OPTIONS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # with a mean of its own: dark, and clipped to black nowhere
        model.tail.bias.copy_(-model.mean.flatten())
    measured = Validation(store, model, None, EvaluateSettings(), None).measure(model.state_dict())
    assert measured["psnr"] == MAX_PSNR
    json.dumps(measured, allow_nan=False)
