"""Full disks and read-only folders: one clear line, and a rerun that completes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.faults.conftest import Unbroken
from tests.faults.disks import full, read_only, small_disk
from tests.faults.pipeline import EXACT, assert_whole, cached_files, fault_params, leftovers
from tests.sharing.project import Clone, write_params

pytestmark = pytest.mark.slow

OUTS = {"prepare": "data/prepared", "edge_to_bit": "tables", "evaluate": "results"}


def copy_of(unbroken: Unbroken, root: Path, *, without: str) -> Clone:
    """Return a copy of the project in which one stage has not run."""
    shutil.copytree(unbroken.project.root, root)
    shutil.rmtree(root / OUTS.get(without, f"models/{without}"))
    return Clone(root, unbroken.project.environment)


def run_stage(project: Clone, stage: str) -> tuple[int, str]:
    """Run a stage's command without DVC, which would fail first on a full disk."""
    command = yaml.safe_load((project.root / "dvc.yaml").read_text())["stages"][stage]["cmd"].split()
    done = subprocess.run(
        [sys.executable, *command[1:]],
        cwd=project.root,
        env={**project.environment, "PYTHONPATH": str(project.root), "DVC_ROOT": str(project.root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def assert_one_clear_line(stage: str, status: int, output: str, *words: str) -> None:
    errors = [line for line in output.splitlines() if line.startswith(f"{stage}: error:")]
    assert status == 1 and len(errors) == 1, output
    assert all(word in errors[0] for word in words), errors
    assert "run `dvc repro` again to continue" in errors[0]
    assert "Traceback" not in output


def assert_rerun_completes(project: Clone, unbroken: Unbroken, cached: set[str]) -> None:
    output = project.dvc("repro")
    assert "up to date" in project.dvc("status"), output
    assert cached <= set(cached_files(project))
    assert project.contents(*EXACT) == unbroken.project.contents(*EXACT)
    assert not [path for path in leftovers(project) if ".resume" not in path.parts]


@pytest.mark.parametrize(
    ("stage", "checkpoint_seconds", "free_bytes", "file"),
    [
        ("prepare", 0, 40_000, "data/prepared/train"),
        ("full_precision", 0, 30_000, "state.safetensors"),  # room for the weights, not for the state
        ("pams", 3600, 0, "models/pams"),  # without a state the model is the first file
        ("cadyq", 0, 0, "state.safetensors"),
        ("edge_to_bit", 0, 0, "tables/observations.npz"),
        ("cabm", 3600, 0, "models/cabm"),
        ("evaluate", 0, 0, "results/quality.json"),
    ],
)
def test_a_full_disk_stops_a_stage_in_one_line(
    stage: str, checkpoint_seconds: int, free_bytes: int, file: str, unbroken: Unbroken, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 96) as disk:
        project = copy_of(unbroken, disk / "project", without=stage)
        params = fault_params()
        params["runtime"]["checkpoint_seconds"] = checkpoint_seconds
        params["tracking"]["enabled"] = False  # it prints its own line
        write_params(project.root, params)
        cached = set(cached_files(project))
        with full(disk, free_bytes=free_bytes):
            status, output = run_stage(project, stage)
            assert_one_clear_line(stage, status, output, "No space left on device", file)
            assert not (project.root / OUTS.get(stage, f"models/{stage}") / "config.json").exists()
            assert_whole(project)
        assert_rerun_completes(project, unbroken, cached)


@pytest.mark.parametrize("stage", ["full_precision", "cabm"])
def test_outs_that_cannot_be_written_stop_a_stage_in_one_line(
    stage: str, unbroken: Unbroken, tmp_path: Path
) -> None:
    project = copy_of(unbroken, tmp_path / "project", without=stage)
    cached = set(cached_files(project))
    with read_only(project.root / "models"):
        status, output = run_stage(project, stage)
        assert_one_clear_line(stage, status, output, f"models/{stage}: ")
        assert "Traceback" not in project.dvc("repro", fails=True)
        assert_whole(project)
    assert_rerun_completes(project, unbroken, cached)


def test_outs_that_are_links_do_not_change_the_cache(unbroken: Unbroken, tmp_path: Path) -> None:
    project = copy_of(unbroken, tmp_path / "project", without="cabm")
    project.dvc("config", "cache.type", "hardlink,symlink")
    project.dvc("checkout", "--relink")
    cached = set(cached_files(project))
    project.dvc("repro", "--force")
    assert cached <= set(cached_files(project))
    assert project.contents(*EXACT) == unbroken.project.contents(*EXACT)
