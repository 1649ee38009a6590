"""The training stages as functions, called from Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from cabm.checkpoints.model_directory import load_model
from cabm.pipeline.building import Recipe, build, calibrate_clip_values
from cabm.pipeline.stage import Stage
from cabm.pipeline.train import full_precision
from cabm.project.params import Params
from cabm.tracking.tracker import NullTracker
from tests.data.helpers import make_store
from tests.pipeline.test_stages import tiny_params

STEPS = 3


@pytest.fixture()
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Tiny params, in a working directory with a train and a validation store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for part in ("train", "validation"):
        make_store(tmp_path / "data" / "prepared" / part, (32, 32))
    values = tiny_params()
    values["full_precision"] |= {"steps": STEPS, "validate_every": 2}
    return Params.model_validate(values)


def test_a_stage_is_a_function_that_needs_neither_dvc_nor_mlflow(params: Params) -> None:
    stage = Stage("full_precision", params, NullTracker())
    full_precision(stage)
    loaded = load_model(stage.models / "full_precision")
    assert loaded.config.provenance["steps"] == STEPS
    assert loaded.config.provenance["validation"]["psnr"] > 0
    rows = (stage.curves / "full_precision.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "2", "3"]
    assert not list(Path(".resume").rglob("*.safetensors"))


def test_building_and_calibration_are_parts_of_their_own(params: Params) -> None:
    full_precision(Stage("full_precision", params, NullTracker()))
    stage = Stage("pams", params, NullTracker())
    start = stage.models / "full_precision"
    built = build(stage, Recipe("pams", start=start, teacher=start))
    assert built.teacher is not None and built.teacher.precision.kind == "float"
    assert built.inputs["start"] == built.inputs["teacher"] == load_model(start).config.weights_sha256
    alphas = {name for name, _ in built.model.named_parameters() if name.endswith(".alpha")}
    calibrated = calibrate_clip_values(stage, built)
    assert set(calibrated) == built.uncalibrated == alphas
    for name, parameter in built.model.named_parameters():
        if name in calibrated:
            assert parameter.tolist() == pytest.approx(calibrated[name])
