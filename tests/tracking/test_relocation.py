"""Runs and models are found again after a project was moved or copied, and new runs stay in its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import pyfunc
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from cabm.cli.main import app
from cabm.errors import InputError
from cabm.project.sections import ServingSettings, TrackingSettings
from cabm.tracking.registry import Quality, log_and_register
from cabm.tracking.relocation import relocate
from cabm.tracking.runs import open_run
from cabm.upscaling.upscaler import Upscaler
from tests.tracking.helpers import to_image, to_text
from tests.upscaling.helpers import photo, tiny_model

pytestmark = pytest.mark.usefixtures("quiet_surroundings")


@pytest.fixture
def project(tmp_path: Path, migrated: Path) -> Path:
    """A project with a run, a picture and a champion; its name needs quoting in a URI."""
    folder = tmp_path / "the project"
    folder.mkdir()
    shutil.copy(migrated, folder / "mlflow.db")
    record(folder, "first")
    return folder


def uri(project: Path) -> str:
    return f"sqlite:///{project / 'mlflow.db'}"


def record(project: Path, key: str) -> None:
    """Record the run of a stage, and register a model."""
    model = tiny_model(project / "model")
    with open_run(
        TrackingSettings(uri=uri(project)), stage="cabm", params={}, tags={}, pipeline_key=key
    ) as tracker:
        tracker.dict("facts", {"key": key})
        quality = Quality(20.0, 5.0, "validation")
        registered = log_and_register(
            tracker, model, name="cabm-edsr-x2", quality=quality, settings=ServingSettings()
        )
        assert registered is not None


def facts(project: Path, place: Path) -> list[str]:
    """Return what the runs stored as artifacts in a place, newest first."""
    client = MlflowClient(tracking_uri=uri(project))
    experiment = client.get_experiment_by_name("cabm")
    runs = client.search_runs([experiment.experiment_id], "tags.stage = 'cabm'")
    assert all(run.info.artifact_uri.startswith(f"{place.as_uri()}/mlartifacts/") for run in runs)
    return [Path(client.download_artifacts(run.info.run_id, "facts.json")).read_text() for run in runs]


def champion(project: Path, place: Path) -> pyfunc.PyFuncModel:
    version = MlflowClient(tracking_uri=uri(project)).get_model_version_by_alias("cabm-edsr-x2", "champion")
    assert version.source.startswith(place.as_uri())
    return pyfunc.load_model(version.source)


def test_a_moved_project_finds_its_runs_and_its_champion(project, tmp_path):
    moved = project.rename(tmp_path / "elsewhere")
    command = ["relocate-runs", str(moved / "mlflow.db")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert f"locations changed to {moved / 'mlartifacts'}" in result.output
    assert len(facts(moved, moved)) == 1
    image = photo(20, 20)
    (row,) = champion(moved, moved).predict(pd.DataFrame({"image": [to_text(image)]}))
    np.testing.assert_array_equal(to_image(row["image"]), Upscaler.load(moved / "model")(image))
    assert CliRunner().invoke(app, command).output.endswith(": up to date\n")


def test_new_runs_of_a_copy_do_not_go_into_the_original(project, tmp_path):
    copy = Path(shutil.copytree(project, tmp_path / "copy"))
    files = sorted(project.rglob("*"))
    record(copy, "second")
    assert sorted(project.rglob("*")) == files
    assert ['"second"' in text for text in facts(copy, copy)] == [True, False]
    assert len(facts(project, project)) == 1
    champion(copy, copy)
    champion(project, project)


def test_artifacts_that_are_not_here_stay_where_they_are(project, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(project / "mlflow.db", alone)
    relocate(alone / "mlflow.db")
    assert len(facts(alone, project)) == 1
    champion(alone, project)


def test_a_file_that_is_no_database_is_one_line(tmp_path):
    database = tmp_path / "mlflow.db"
    for message in ("no such file", "cannot be used as MLflow's database"):
        result = CliRunner().invoke(app, ["relocate-runs", str(database)])
        assert isinstance(result.exception, InputError)
        assert str(result.exception).startswith(f"{database}: {message}")
        database.write_bytes(b"hello" * 999)
