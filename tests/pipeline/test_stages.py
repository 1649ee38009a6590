"""The stage scripts as processes: a tiny pipeline, kills, and errors of the user."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from cabm.pipeline.resume_states import KEPT_STATES
from tests.conftest import REPOSITORY

SCRIPTS = {
    "prepare": "prepare_data.py",
    "full_precision": "train_full_precision.py",
    "pams": "train_pams.py",
    "cadyq": "train_cadyq.py",
    "edge_to_bit": "build_edge_to_bit.py",
    "cabm": "finetune_cabm.py",
    "evaluate": "evaluate.py",
}
TRAINING = ("full_precision", "pams", "cadyq", "cabm")


def tiny_params() -> dict[str, Any]:
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["model"] |= {"scale": 2, "options": {"edsr": {"num_features": 8, "num_blocks": 2}}}
    params["runtime"] |= {"threads": 1, "checkpoint_seconds": 0}
    params["tracking"] |= {"enabled": False, "log_every": 10}
    params["edge_to_bit"] |= {"tile": 48, "stride": 46}
    params["evaluate"] |= {"tile": 48, "stride": 46, "max_whole_pixels": 100_000}
    for stage in TRAINING:
        params[stage] |= {"init_from": None, "steps": 40, "validate_every": 20}
        params[stage] |= {"batch_size": 4, "patch": 12}
    params["cadyq"] |= {"w_bit": 0.1, "selector_learning_rate": 0.05}
    return params


def write_params(project: Path, params: dict[str, Any]) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def start(stage: str, project: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DVC_ROOT": str(project)}
    command = [sys.executable, str(REPOSITORY / "stages" / SCRIPTS[stage])]
    return subprocess.Popen(
        command, cwd=project, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def run(stage: str, project: Path) -> tuple[int, str]:
    process = start(stage, project)
    output, errors = process.communicate(timeout=1800)
    return process.returncode, output + errors


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which every stage has run once."""
    project = tmp_path_factory.mktemp("project")
    write_params(project, tiny_params())
    for stage in SCRIPTS:
        status, output = run(stage, project)
        assert status == 0, f"{stage}: {output}"
    return project


def copy_of(finished: Path, project: Path, *, without: str) -> Path:
    shutil.copytree(finished, project, dirs_exist_ok=True)
    shutil.rmtree(project / "models" / without)
    return project


def weights(project: Path, stage: str) -> dict[str, np.ndarray]:
    return load_file(project / "models" / stage / "model.safetensors")


def assert_same_weights(project: Path, finished: Path, stage: str) -> None:
    expected = weights(finished, stage)
    for name, value in weights(project, stage).items():
        assert np.array_equal(value, expected[name]), name


def test_the_pipeline_writes_all_outs(finished: Path) -> None:
    for stage in yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"].values():
        for entry in [*stage["outs"], *stage.get("metrics", []), *stage.get("plots", [])]:
            out = entry if isinstance(entry, str) else next(iter(entry))
            assert (finished / out).exists(), out
    assert not list((finished / ".resume").rglob("*.safetensors")), "deleted at the end"


def test_results_hold_every_step_under_both_protocols(finished: Path) -> None:
    quality = json.loads((finished / "results" / "quality.json").read_text())
    methods = {"bicubic", "full_precision", "pams", "cadyq", "cabm"}
    for protocol in ("tiles", "whole"):
        assert set(quality["results"][protocol]["sample"]) == methods
    rows = quality["results"]["tiles"]["sample"]
    assert 4 <= rows["cadyq"]["fab"] <= 8
    assert rows["pams"]["bitops_tile_T"] < rows["full_precision"]["bitops_tile_T"]
    assert rows["cadyq"]["bitops_image_T"] < rows["cadyq"]["bitops_tile_T"]
    assert "shave" in quality["protocol"]
    page = (finished / "results" / "report.html").read_text()
    assert "<h1>" in page and "No results yet" not in page
    per_image = (finished / "results" / "images.csv").read_text().splitlines()
    assert len(per_image) == 1 + 2 * 5 * 3


def test_dependencies_of_evaluate_hold_no_durations(finished: Path) -> None:
    """Otherwise a repeated training with the same result would be evaluated again."""
    deps = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]["evaluate"]["deps"]
    written = [finished / dep for dep in deps if dep.startswith(("metrics/", "curves/"))]
    assert len(written) == 10
    assert not [path for path in written if "second" in path.read_text()]
    for stage in SCRIPTS:
        assert json.loads((finished / "timing" / f"{stage}.json").read_text())["seconds"] > 0


def test_curves_have_losses_and_validation(finished: Path) -> None:
    header, *rows = (finished / "curves" / "cadyq.csv").read_text().splitlines()
    for column in ("step", "learning_rate", "train_l1", "train_bits", "train_fab", "validation_psnr"):
        assert column in header.split(",")
    assert [row.split(",")[0] for row in rows] == ["10", "20", "30", "40"]


SLOW_KILLS = [pytest.param(stage, marks=pytest.mark.slow) for stage in ("full_precision", "pams", "cabm")]


@pytest.mark.parametrize("stage", ["cadyq", *SLOW_KILLS])
def test_a_killed_stage_resumes_to_the_same_bits(stage: str, finished: Path, tmp_path: Path) -> None:
    project = copy_of(finished, tmp_path / "project", without=stage)
    resumed = 0
    for _ in range(2):
        process = start(stage, project)
        deadline = time.monotonic() + 1800
        state = project / ".resume" / stage
        while not list(state.rglob("state.safetensors")) and process.poll() is None:
            assert time.monotonic() < deadline, "no resume state was written"
            time.sleep(0.01)
        time.sleep(random.Random(stage).uniform(0.05, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        resumed += bool(list(state.rglob("state.safetensors")))
    assert resumed, "the kills came too late to test anything"
    status, output = run(stage, project)
    assert status == 0, output
    assert_same_weights(project, finished, stage)
    assert not [path for path in project.rglob(".*-*") if path.is_file() and "models" in path.parts]


def test_an_interrupted_stage_fails_and_tells_how_to_continue(finished: Path, tmp_path: Path) -> None:
    project = copy_of(finished, tmp_path / "project", without="cabm")
    params = tiny_params()
    params["cabm"]["steps"] = 100_000
    write_params(project, params)
    process = start("cabm", project)
    while not list((project / ".resume" / "cabm").rglob("state.safetensors")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "dvc repro" in errors.splitlines()[-1] and "Traceback" not in errors
    assert not (project / "models" / "cabm").exists()


def test_another_seed_does_not_resume_from_this_state(finished: Path, tmp_path: Path) -> None:
    project = copy_of(finished, tmp_path / "project", without="full_precision")
    process = start("full_precision", project)
    while not list((project / ".resume" / "full_precision").rglob("state.safetensors")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    for number in range(KEPT_STATES + 1):  # states of interrupted runs long ago
        old = project / ".resume" / "full_precision" / f"old{number}" / "state.safetensors"
        old.parent.mkdir()
        old.write_bytes(b"state")
        for path in (old, old.parent):
            os.utime(path, (number, number))
    params = tiny_params()
    params["full_precision"]["seed"] = 7
    write_params(project, params)
    assert run("full_precision", project)[0] == 0
    states = (project / ".resume" / "full_precision").glob("old*")
    assert {path.name for path in states} == {f"old{number}" for number in range(1, KEPT_STATES + 1)}
    same = weights(finished, "full_precision")
    assert any(not np.array_equal(v, same[k]) for k, v in weights(project, "full_precision").items())


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("prepare", {"prepare": {"train": [{"source": "folder", "path": "nowhere"}]}}, "nowhere"),
        ("cadyq", {"cadyq": {"steps": -1}}, "cadyq.steps"),
        ("cadyq", {"cadyq": {"patch": 4096}}, "4096"),
        ("pams", {"pams": {"init_from": "no/such/model"}}, "no/such/model"),
        ("full_precision", {"full_precision": {"learning_rate": "fast"}}, "full_precision.learning_rate"),
        ("cabm", {"model": {"scale": 3}}, "scale"),
        ("cabm", {"quantization": {"search_space": [2, 4, 6, 8]}}, "search space"),
        ("full_precision", {"model": {"name": "vgg"}}, "vgg"),
        ("full_precision", {"surprise": {}}, "surprise"),
        ("evaluate", {"evaluate": {"picture": "sample/nobody"}}, "sample/nobody"),
    ],
)
def test_mistakes_are_one_line(
    stage: str, change: dict[str, Any], message: str, finished: Path, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    shutil.copytree(finished, project)
    params = tiny_params()
    for section, values in change.items():
        params[section] = params.get(section, {}) | values
    write_params(project, params)
    status, output = run(stage, project)
    assert status == 1
    lines = [line for line in output.splitlines() if line.startswith(f"{stage}: error:")]
    assert len(lines) == 1 and message in lines[0], output
    assert "Traceback" not in output
