"""Stages on two processes: from params, on two nodes, interrupted, and by `dvc repro`.

These take minutes: `pytest -m slow tests/pipeline/test_distributed_stages.py`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import load_file

from tests.conftest import REPOSITORY
from tests.pipeline.test_stages import tiny_params
from tests.sharing.processes import free_port
from tests.sharing.project import Clone, make_project, surroundings
from tests.sharing.project import tiny_params as dvc_params

pytestmark = pytest.mark.slow

SCRIPT = "train_full_precision.py"
STAGE = "full_precision"


def params(processes: int, **changes: Any) -> dict[str, Any]:
    values = tiny_params()
    values["runtime"] |= {"processes": processes, "precision": "fp32", "timeout_seconds": 60}
    # long enough to be interrupted
    values[STAGE] |= {"steps": 150, "validate_every": 50} | changes
    return values


def write(project: Path, values: dict[str, Any]) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(values))


def start(project: Path, *prefix: str, script: str = SCRIPT, **variables: str) -> subprocess.Popen[str]:
    command = [*(prefix or (sys.executable,)), str(REPOSITORY / "stages" / script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DVC_ROOT": str(project)} | variables
    return subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Return the exit status, and the lines of output without the progress."""
    _, errors = process.communicate(timeout=1800)
    # the progress of a killed process has no end of line
    said = re.sub(r"[^\r\n]*?(step/s|s/step)[^\]\r\n]*\]", "", errors)
    return process.returncode, [line for line in re.split(r"[\r\n]+", said) if line.strip()]


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the two processes that train."""
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    return children


def wait_for_state(process: subprocess.Popen[str], project: Path) -> None:
    """Wait until the training has written its resume state."""
    began = psutil.Process(process.pid).create_time()
    while not [
        state for state in (project / ".resume").rglob("state.safetensors") if state.stat().st_mtime > began
    ]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def weights(project: Path, stage: str = STAGE) -> dict[str, np.ndarray]:
    return load_file(project / "models" / stage / "model.safetensors")


def assert_same(project: Path, other: Path) -> None:
    expected = weights(other)
    assert all(np.array_equal(value, expected[name]) for name, value in weights(project).items())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("prepared")
    write(project, params(2))
    status, lines = end(start(project, script="prepare_data.py"))
    assert status == 0, lines
    return project


@pytest.fixture(scope="module")
def unbroken(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose first training ran on two processes."""
    project = tmp_path_factory.mktemp("two") / "project"
    shutil.copytree(prepared, project)
    status, lines = end(start(project))
    assert status == 0 and not lines, lines
    return project


@pytest.fixture
def project(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "project")
    return tmp_path / "project"


def test_two_processes_end_where_one_does(unbroken: Path, project: Path) -> None:
    write(project, params(1))
    assert end(start(project))[0] == 0
    one, two = weights(project), weights(unbroken)
    assert all(np.allclose(two[name], value, rtol=1e-3, atol=1e-4) for name, value in one.items())
    measured = [
        json.loads((folder / "metrics" / f"{STAGE}.json").read_text())["validation"]
        for folder in (project, unbroken)
    ]
    assert measured[1] == pytest.approx(measured[0], rel=1e-4)
    rows = [(folder / "curves" / f"{STAGE}.csv").read_text().splitlines() for folder in (project, unbroken)]
    assert len(rows[0]) == len(rows[1]) and rows[0][0] == rows[1][0]


def test_killed_worker_ends_the_stage_and_a_rerun_ends_with_the_same_bits(
    unbroken: Path, project: Path
) -> None:
    for rank in (1, 0):
        process = start(project)
        wait_for_state(process, project)
        children = workers(process)
        (victim,) = [child for child in children if child.environ()["RANK"] == str(rank)]
        victim.kill()
        began = time.monotonic()
        status, lines = end(process)
        assert status == 1 and time.monotonic() - began < 60
        assert lines == [
            f"{STAGE}: error: process {rank} was ended by SIGKILL; run `dvc repro` again to continue"
        ]
        assert not any(child.is_running() for child in children)
        assert not (project / "models").exists()
    assert end(start(project))[0] == 0
    assert_same(project, unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_all(number: signal.Signals, project: Path) -> None:
    write(project, params(2, steps=100_000))
    process = start(project)
    wait_for_state(process, project)
    children = workers(process)
    process.send_signal(number)
    status, lines = end(process)
    assert status == 130 and lines == [f"{STAGE}: interrupted; run `dvc repro` again to continue"]
    assert not any(child.is_running() for child in children)


def test_workers_do_not_outlive_a_killed_launcher(project: Path) -> None:
    write(project, params(2, steps=100_000))
    process = start(project)
    wait_for_state(process, project)
    children = workers(process)
    process.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    process.communicate()


def test_processes_of_one_machine_listen_on_its_loopback_alone(project: Path) -> None:
    write(project, params(2, steps=100_000))
    process = start(project)
    wait_for_state(process, project)
    family = [psutil.Process(process.pid), *workers(process)]
    sockets = [made for member in family for made in member.net_connections("inet")]
    process.terminate()
    assert end(process)[0] == 130
    listening = {made.laddr.ip for made in sockets if made.status == psutil.CONN_LISTEN}
    assert listening and listening <= {"127.0.0.1", "::1"}, "gloo and the store listen"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 5}, "a batch of 5 patches cannot be shared by 2 processes"),
        ({"init_from": "no/such/model"}, "no/such/model"),
        ({"patch": 4096}, "no image is as large as a patch of 4096"),
    ],
)
def test_an_error_of_all_processes_is_one_line(change: dict[str, Any], message: str, project: Path) -> None:
    write(project, params(2, **change))
    status, lines = end(start(project))
    assert status == 1
    assert len(lines) == 1 and lines[0].startswith(f"{STAGE}: error: ") and message in lines[0], lines


def nodes(project: Path, second: Path, **variables: str) -> list[subprocess.Popen[str]]:
    variables = {
        "PET_NNODES": "2",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": f"localhost:{free_port()}",
        "PET_RDZV_ID": "test",
        "PET_LOCAL_ADDR": "localhost",
    } | variables
    return [start(folder, **variables) for folder in (project, second)]


def test_two_nodes_train_in_one_directory(unbroken: Path, project: Path) -> None:
    write(project, params(1))
    ends = [end(process) for process in nodes(project, project)]
    assert [status for status, _ in ends] == [0, 0], ends
    assert_same(project, unbroken)


def test_nodes_with_other_params_are_refused(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "other")
    write(project, params(1))
    write(tmp_path / "other", params(1, seed=1))
    for process in nodes(project, tmp_path / "other"):
        status, lines = end(process)
        assert status == 1 and len(lines) == 1, lines
        assert "differ in stage, params, data or weights" in lines[0]


def test_nodes_that_do_not_meet_say_so(project: Path) -> None:
    write(project, params(1))
    variables = {"PET_NNODES": "2", "PET_RDZV_BACKEND": "c10d", "PET_RDZV_CONF": "join_timeout=3"}
    process = start(project, PET_RDZV_ENDPOINT=f"localhost:{free_port()}", **variables)
    status, lines = end(process)
    assert status == 1 and len(lines) == 1 and "did not find each other at localhost:" in lines[0], lines


def test_torchrun_starts_a_stage_too(unbroken: Path, project: Path) -> None:
    write(project, params(1))
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    status, lines = end(start(project, *torchrun))
    assert status == 0, lines
    assert_same(project, unbroken)


def test_dvc_repro_trains_every_step_on_two_processes(tmp_path: Path) -> None:
    project = dvc_project(tmp_path, processes=2)
    project.dvc("repro")
    assert "up to date" in project.dvc("status")
    quality = json.loads((project.root / "metrics" / "quality.json").read_text())
    assert "cabm" in json.dumps(quality)
    dvc_project_params(project, processes=1)
    assert "up to date" in project.dvc("status"), "the number of processes does not change the experiment"


def test_dvc_repro_trains_on_two_nodes(tmp_path: Path) -> None:
    project = dvc_project(tmp_path, processes=1)
    names = {"PET_NNODES": "2", "PET_RDZV_BACKEND": "c10d", "PET_LOCAL_ADDR": "localhost"}
    names |= {"PET_RDZV_ENDPOINT": f"localhost:{free_port()}", "PET_RDZV_ID": "run1"}
    loop = (REPOSITORY / "docs" / "multi-node.md").read_text()
    loop = textwrap.dedent(re.search(r"    for script in .*?    done\n", loop, re.DOTALL).group())
    follower = subprocess.Popen(
        ["bash", "-c", loop],
        cwd=project.root,
        # both nodes are on one machine, so this one must not host the store, too
        env={**project.environment, **names, "PYTHONPATH": str(project.root)}
        | {"PET_RDZV_CONF": "is_host=false,read_timeout=600,join_timeout=600"},
        start_new_session=True,
    )
    try:
        project.dvc("repro", **names)
        assert follower.wait(timeout=1800) == 0
    finally:
        if follower.poll() is None:
            os.killpg(follower.pid, signal.SIGKILL)
    assert "up to date" in project.dvc("status")
    assert (project.root / "metrics" / "quality.json").exists()


def dvc_project(folder: Path, processes: int) -> Clone:
    (folder / "home").mkdir()
    project = make_project(folder / "project", surroundings(folder / "home"))
    dvc_project_params(project, processes)
    return project


def dvc_project_params(project: Clone, processes: int) -> None:
    values = dvc_params()
    values["runtime"] |= {"processes": processes, "timeout_seconds": 60}
    values["tracking"] |= {"enabled": False}
    write(project.root, values)
