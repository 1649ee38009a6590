"""DVC experiments: in the workspace, in a copy and from the queue; their comparison and records."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests.sharing.conftest import MlflowServer
from tests.sharing.project import Clone, clone_with_cache

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def laboratory(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone with three experiments: in the workspace, in a copy, and the first of a queued grid."""
    clone = clone_with_cache(finished, tmp_path_factory.mktemp("laboratory") / "project")
    clone.dvc("exp", "run", "--name", "here", "--set-param", "cabm.learning_rate=3e-4")
    clone.git("checkout", "--quiet", ".")
    clone.dvc("checkout")
    clone.dvc("exp", "run", "--name", "copied", "--temp", "--set-param", "cabm.learning_rate=5e-4")
    assert clone.git("status", "--porcelain") == "", "an experiment in a copy does not change the workspace"
    grid = ("cadyq.w_bit=0.05,0.5", "quantization.search_space=[4,8],[2,4,8]")
    clone.dvc("exp", "run", "--queue", *(part for value in grid for part in ("--set-param", value)))
    queued = clone.dvc("queue", "status").splitlines()
    tasks = [line.split()[0] for line in queued if line.endswith("Queued")]
    assert len(tasks) == 4
    clone.dvc("queue", "remove", *tasks[1:])
    clone.dvc("queue", "start", "--jobs", "1")
    deadline = time.monotonic() + 3600
    while "Success" not in (status := clone.dvc("queue", "status")):
        assert "Failed" not in status, clone.dvc("queue", "logs", tasks[0])
        assert time.monotonic() < deadline, status
        time.sleep(2)
    yield clone
    clone.dvc("queue", "stop", "--kill")


def shown(clone: Clone) -> dict[str, dict[str, str]]:
    """Return the table of experiments by name."""
    rows = csv.DictReader(io.StringIO(clone.dvc("exp", "show", "--only-changed", "--csv")))
    return {row["Experiment"] or row["rev"]: row for row in rows}


def queued_name(table: dict[str, dict[str, str]]) -> str:
    (name,) = set(table) - {"workspace", "main", "here", "copied"}
    return name


def test_experiments_compare_in_a_table_of_named_columns(laboratory: Clone) -> None:
    table = shown(laboratory)
    queued = queued_name(table)
    columns = set(table["here"]) - {"Experiment", "rev", "typ", "Created", "parent", "State", "Executor"}
    numbers = {column for column in columns if "/" not in column}  # the others are hashes of files
    assert "zoo.cabm_psnr" in numbers
    assert {"cabm.learning_rate", "cadyq.w_bit", "quantization.search_space"} <= numbers
    assert len(numbers) < 15, "only columns that differ"
    assert float(table["here"]["cabm.learning_rate"]) == 3e-4
    assert float(table["copied"]["cabm.learning_rate"]) == 5e-4
    assert table[queued]["quantization.search_space"] == "[4, 8]"
    assert table["here"]["zoo.cabm_psnr"] != table["copied"]["zoo.cabm_psnr"]


def test_differences_are_few_lines(laboratory: Clone, tmp_path: Path) -> None:
    metrics = laboratory.dvc("metrics", "diff", "main", "copied")
    assert "zoo.cabm_psnr" in metrics
    assert len(metrics.splitlines()) <= 8
    assert "seconds" not in metrics
    params = laboratory.dvc("params", "diff", "main", "copied")
    assert [line.split()[1:] for line in params.splitlines()[1:]] == [
        ["cabm.learning_rate", "0.0001", "0.0005"]
    ]
    laboratory.dvc("plots", "diff", "main", "copied", "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots" / "index.html").read_text()
    assert "cabm: L1 of training" in page
    assert '"step"' in page and '"train_l1"' in page


def test_another_search_space_keeps_the_float_and_the_8_bit_model(laboratory: Clone) -> None:
    name = queued_name(shown(laboratory))
    changed = laboratory.git("diff", "--name-only", "main", laboratory_revision(laboratory, name)).split()
    assert "metrics/cadyq.json" in changed
    assert "metrics/full_precision.json" not in changed
    assert "metrics/pams.json" not in changed


def laboratory_revision(clone: Clone, name: str) -> str:
    """Return the commit of an experiment."""
    references = clone.git("for-each-ref", "--format=%(refname)", "refs/exps").split()
    (reference,) = [reference for reference in references if reference.endswith(f"/{name}")]
    return reference


def test_every_experiment_lands_in_the_same_store_under_its_name(
    laboratory: Clone, mlflow_server: MlflowServer
) -> None:
    client = MlflowClient(tracking_uri=mlflow_server.uri)
    runs: list[Run] = client.search_runs(["1"], max_results=1000)
    head = laboratory.git("rev-parse", "main").strip()
    for name in ("here", "copied", queued_name(shown(laboratory))):
        (pipeline,) = [run for run in runs if run.info.run_name == name]
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == pipeline.info.run_id]
        assert {"cabm", "evaluate"} <= {run.data.tags["stage"] for run in children}
        assert {run.data.tags["experiment"] for run in children} == {name}
        assert {run.info.status for run in (pipeline, *children)} == {"FINISHED"}
        assert pipeline.data.tags["baseline"] == head
        assert "zoo/cabm_psnr" in pipeline.data.metrics
        assert float(pipeline.data.params["cabm.learning_rate"]) in (1e-4, 3e-4, 5e-4)
    assert not list(laboratory.root.rglob("mlflow.db"))


def test_an_experiment_goes_to_another_clone(laboratory: Clone, tmp_path: Path) -> None:
    origin = tmp_path / "origin.git"
    laboratory.git("clone", "--quiet", "--bare", str(laboratory.root), str(origin))
    other = laboratory.clone(tmp_path / "other")
    for clone in (laboratory, other):
        clone.git("remote", "set-url", "origin", str(origin))
        clone.dvc("remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    laboratory.dvc("push")
    laboratory.dvc("exp", "push", "origin", "copied")
    other.dvc("exp", "pull", "origin", "copied")
    other.dvc("exp", "apply", "copied")
    assert "didn't change" in other.dvc("repro")
    assert "learning_rate: 0.0005" in (other.root / "params.yaml").read_text()
    assert (other.root / "models" / "cabm" / "model.safetensors").is_file()
