"""Four experiments at once with one repository, one DVC cache and one SQLite database of MLflow."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient

from tests.faults.conftest import Unbroken
from tests.faults.pipeline import cached_files, fault_params
from tests.sharing.project import OUTS, Clone, clone_with_cache

pytestmark = pytest.mark.slow

RATES = {"one": 2e-4, "two": 3e-4, "three": 4e-4, "four": 5e-4}  # all differ from the first run
WAIT_S = 3000
# A busy machine may print this line; the database shows whether the records arrived.
EXPLAINED = "MLflow does not answer; records are kept and sent later"


def run_at_once(project: Clone) -> dict[str, str]:
    """Run them as four commands, which wait for DVC's short locks."""
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "exp", "run", "--temp"]
    processes = {
        name: subprocess.Popen(
            [*command, "--name", name, "--set-param", f"cabm.learning_rate={rate}"],
            cwd=project.root,
            env={**project.environment, "PYTHONPATH": str(project.root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, rate in RATES.items()
    }
    outputs = {name: process.communicate(timeout=WAIT_S)[0] for name, process in processes.items()}
    for name, process in processes.items():
        assert process.returncode == 0, f"{name}: {outputs[name]}"
    return outputs


def run_queue(project: Clone) -> dict[str, str]:
    """Run them from DVC's queue with four workers."""
    for name, rate in RATES.items():
        project.dvc("exp", "run", "--queue", "--name", name, "--set-param", f"cabm.learning_rate={rate}")
    project.dvc("queue", "start", "--jobs", str(len(RATES)))
    try:
        deadline = time.monotonic() + WAIT_S
        while (status := project.dvc("queue", "status")).count("Success") < len(RATES):
            assert "Failed" not in status, [project.dvc("queue", "logs", name) for name in RATES]
            assert time.monotonic() < deadline, status
            time.sleep(2)
        return {name: project.dvc("queue", "logs", name) for name in RATES}
    finally:
        project.dvc("queue", "stop", "--kill")


@pytest.mark.parametrize("run", [run_at_once, run_queue])
def test_four_experiments_at_once_lose_nothing(run, unbroken: Unbroken, tmp_path: Path) -> None:
    project = clone_with_cache(unbroken.project, tmp_path / "project")
    cached_before = set(cached_files(project))
    assert not (project.root / "mlflow.db").exists(), "the experiments create it"
    outputs = run(project)
    for name, output in outputs.items():
        unexplained = [line for line in output.splitlines() if EXPLAINED not in line]
        for trouble in ("Traceback", "locked", "MLflow", "ERROR", "error:"):
            assert not [line for line in unexplained if trouble in line], f"{name}: {output}"
    cached = cached_files(project)
    assert cached_before <= set(cached)
    assert_whole_experiments(project, cached)
    assert_recorded(project)


def assert_whole_experiments(project: Clone, cached: Mapping[str, Path]) -> None:
    """Check that the experiments differ, and that the cache holds all their outs."""
    references = project.git("for-each-ref", "--format=%(refname)", "refs/exps").split()
    by_name = {reference.rsplit("/", 1)[1]: reference for reference in references}
    models = set()
    for name, rate in RATES.items():
        params = yaml.safe_load(project.git("show", f"{by_name[name]}:params.yaml"))
        assert params["cabm"]["learning_rate"] == rate
        stages = yaml.safe_load(project.git("show", f"{by_name[name]}:dvc.lock"))["stages"]
        outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
        models.add(outs["models/cabm"])
        for path, md5 in outs.items():
            if not path.startswith(OUTS):
                continue  # in git
            content = cached[md5.removesuffix(".dir")].read_text() if md5.endswith(".dir") else "[]"
            assert {md5.removesuffix(".dir"), *(file["md5"] for file in json.loads(content))} <= set(cached)
    assert len(models) == len(RATES)


def assert_recorded(project: Clone) -> None:
    """Check that MLflow has every experiment once, with all stages and whole curves."""
    params = fault_params()
    client = MlflowClient(tracking_uri=f"sqlite:///{project.root / 'mlflow.db'}")
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=1000)
    for name, rate in RATES.items():
        (pipeline,) = [run for run in runs if run.info.run_name == name]
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == pipeline.info.run_id]
        assert sorted(run.data.tags["stage"] for run in children) == ["cabm", "evaluate"]
        assert {run.info.status for run in (pipeline, *children)} == {"FINISHED"}
        assert float(pipeline.data.params["cabm.learning_rate"]) == rate
        (training,) = [run for run in children if run.data.tags["stage"] == "cabm"]
        curve = client.get_metric_history(training.info.run_id, "train_l1")
        every, steps = params["tracking"]["log_every"], params["cabm"]["steps"]
        assert [point.step for point in curve] == list(range(every, steps + 1, every))
        assert "zoo/cabm_psnr" in pipeline.data.metrics
    assert len(runs) == 3 * len(RATES), "no run was created twice"
