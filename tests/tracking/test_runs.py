from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient
from PIL import Image
from pydantic import ValidationError

from cabm.project.sections import TrackingSettings
from cabm.tracking.store import QUIET_LOGGERS
from cabm.tracking.tracker import NullTracker
from tests.tracking.recorded import (
    KEY,
    artifact,
    only,
    open_stage,
    python,
    runs,
    stage_runs,
    train,
    warnings_of,
)

pytestmark = pytest.mark.usefixtures("quiet_surroundings")


# ---------------------------------------------------------------- what a run holds


def test_curves_params_and_tags(settings: TrackingSettings, client: MlflowClient) -> None:
    params = {"cadyq": {"lr": 1e-4, "search_space": [4, 6, 8]}, "long": "x" * 10_000, "a@b": None}
    with open_stage(settings, params=params, tags={"weights.sha256": "ab"}, data_hash="cd") as run:
        for step in range(0, 3000):
            run.metrics({"loss/total": 1 / (step + 1), "psnr": np.float32(step)}, step)
        run.metrics({"fab": float("nan")}, 1)
        run.tags({"patches per second": 12.5})
        run.params({"late": {"value": True}})
    stored = only(stage_runs(client))
    assert stored.info.status == "FINISHED"
    assert stored.data.params["cadyq.lr"] == "0.0001"
    assert stored.data.params["cadyq.search_space"] == "[4, 6, 8]"
    assert stored.data.params["long"] == "x" * 6000
    assert stored.data.params["a_b"] == "null"
    assert stored.data.params["late.value"] == "true"
    tags = stored.data.tags
    assert tags["patches per second"] == "12.5"
    assert tags["weights.sha256"] == "ab"
    assert tags["data.sha256"] == "cd"
    assert tags["pipeline.key"] == KEY
    assert len(tags["params.sha256"]) == 16
    history = client.get_metric_history(stored.info.run_id, "loss/total")
    assert sorted((point.step, point.value) for point in history) == [
        (step, 1 / (step + 1)) for step in range(3000)
    ]
    assert np.isnan(stored.data.metrics["fab"])


def test_more_params_than_one_request_takes(settings: TrackingSettings, client: MlflowClient) -> None:
    params = {f"p{index}": index for index in range(250)}
    with open_stage(settings, params=params):
        pass
    stored = only(stage_runs(client)).data.params
    assert stored == {name: str(value) for name, value in params.items()}


def test_artifacts(settings: TrackingSettings, client: MlflowClient) -> None:
    from matplotlib.figure import Figure

    rows = [{"image": "baby", "psnr": np.float64(28.5)}, {"image": "bird", "fab": float("inf")}]
    figure = Figure()
    figure.subplots().plot([1, 2])
    with open_stage(settings) as run:
        run.dict("notes/all.json", "schön")
        run.dict("table", {"rows": np.array([[4, 8]]), "path": Path("x"), "nan": float("nan")})
        run.table("results/Set5", rows)
        run.figure("figures/curve", figure)
        run.figure("figures/curve.svg", figure)
        figure.clear()
    stored = only(stage_runs(client))
    assert json.loads(artifact(client, stored, "notes/all.json")) == "schön"
    table = json.loads(artifact(client, stored, "table.json"))
    assert table == {"rows": [[4, 8]], "path": "x", "nan": None}
    curve = Image.open(io.BytesIO(artifact(client, stored, "figures/curve.png")))
    assert np.asarray(curve).std() > 0, "drawn when it was recorded, not when it was sent"
    assert b"<svg" in artifact(client, stored, "figures/curve.svg")
    frame = client.load_table(stored.info.experiment_id, "results/Set5.json")
    assert list(frame.columns) == ["image", "psnr", "fab"]
    assert list(frame["image"]) == ["baby", "bird"]


def test_a_table_logged_again_replaces_the_first(settings: TrackingSettings, client: MlflowClient) -> None:
    with open_stage(settings) as run:
        run.table("t", [{"a": 1}])
        run.table("t", [{"a": 2}])
    stored = only(stage_runs(client))
    assert json.loads(artifact(client, stored, "t.json")) == {"columns": ["a"], "data": [[2]]}
    assert len(json.loads(stored.data.tags["mlflow.loggedArtifacts"])) == 1


def test_a_record_that_mlflow_refuses_costs_only_itself(
    settings: TrackingSettings, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    with open_stage(settings) as run:
        run.dict("../../outside", "x")
        run.dict("../../outside", "x")
        run.metrics({"loss": 1.0}, 1)
    assert only(stage_runs(client)).data.metrics == {"loss": 1.0}
    assert [record.levelname for record in warnings_of(caplog)] == ["WARNING", "WARNING"]
    assert "refused a record" in warnings_of(caplog)[0].message
    assert warnings_of(caplog)[1].message.startswith("2 records did not reach MLflow")


def test_call_asks_the_store(settings: TrackingSettings, client: MlflowClient) -> None:
    with open_stage(settings) as run:
        assert run.call(lambda store, run_id: store.get_run(run_id).info.status, 20) == "RUNNING"
        with pytest.raises(ZeroDivisionError):
            run.call(lambda store, run_id: 1 / 0, 20)
        run.metrics({"loss": 1.0}, 1)
    assert only(stage_runs(client)).data.metrics == {"loss": 1.0}


# ---------------------------------------------------------------- pipelines and stages


def test_the_stages_of_a_pipeline_are_children_of_one_run(
    settings: TrackingSettings, client: MlflowClient
) -> None:
    for stage in ("pams", "cadyq", "cabm"):
        with open_stage(settings, stage) as run:
            assert run.call(lambda store, run_id: True, 60)
            assert only(stage_runs(client, "pipeline")).info.status == "RUNNING"
    with open_stage(settings, "pams", pipeline_key="another"):
        pass
    first, second = stage_runs(client, "pipeline")
    assert first.info.run_name == "pipeline 0123456789"
    assert [run.info.status for run in (first, second)] == ["FINISHED", "FINISHED"]
    children = [run for run in runs(client) if run.data.tags["stage"] != "pipeline"]
    parents = [run.data.tags["mlflow.parentRunId"] for run in children]
    assert parents == [first.info.run_id] * 3 + [second.info.run_id]
    assert [run.info.run_name for run in children[:3]] == [
        "pams (pipeline 0123456789)",
        "cadyq (pipeline 0123456789)",
        "cabm (pipeline 0123456789)",
    ]


def test_pipelines_are_compared_by_their_own_params_and_metrics(
    settings: TrackingSettings, client: MlflowClient
) -> None:
    whole = {"model": {"name": "edsr"}, "cadyq": {"w_bit": 1e-4}}
    for stage in ("cadyq", "evaluate"):
        arguments = {"pipeline_title": "edsr x4", "pipeline_params": whole}
        with open_stage(settings, stage, **arguments) as run:
            run.metrics({"loss": 1.0}, 0)
            run.pipeline_metrics({f"{stage}/psnr": 26.5})
    pipeline = only(stage_runs(client, "pipeline"))
    assert pipeline.info.run_name == "edsr x4 0123456789"
    assert pipeline.data.params == {"model.name": "edsr", "cadyq.w_bit": "0.0001"}
    assert pipeline.data.metrics == {"cadyq/psnr": 26.5, "evaluate/psnr": 26.5}
    assert only(stage_runs(client, "cadyq")).data.metrics == {"loss": 1.0}


def test_the_pages_of_an_experiment_are_those_of_model_training(
    settings: TrackingSettings, client: MlflowClient
) -> None:
    with open_stage(settings, "evaluate") as run:
        values = {"zoo/float_psnr": 26.6, "zoo/cabm_psnr": 26.5, "zoo/cabm_fab": 5.5}
        run.pipeline_metrics(values, shown=list(values))
        run.pipeline_figure("psnr", Figure())
    (pipeline,) = stage_runs(client, "pipeline")
    tags = client.get_experiment(pipeline.info.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(tags["mlflow.sharedViewState.pipelines"])
    assert view["selectedColumns"] == [f"metrics.`{name}`" for name in values]
    (plot,) = view["compareRunCharts"]
    assert (plot["xaxis"]["key"], plot["yaxis"]["key"]) == ("zoo/cabm_fab", "zoo/cabm_psnr")
    assert [plot["metricSectionId"]] == [section["uuid"] for section in view["compareRunSections"]]
    shown = client.search_runs([pipeline.info.experiment_id], view["searchFilter"])
    assert [run.info.run_id for run in shown] == [pipeline.info.run_id]
    query = "workflowType=machine_learning&viewStateShareKey=pipelines"
    link = f"#/experiments/{pipeline.info.experiment_id}/runs?{query}"
    assert link in tags["mlflow.note.content"].partition("\n")[0]
    images = [file.path for file in client.list_artifacts(pipeline.info.run_id, "images")]
    assert any(path.endswith(".png") for path in images) and all("psnr" in path for path in images)


def test_kind_and_description_of_an_experiment_stay_as_the_user_set_them(
    settings: TrackingSettings, client: MlflowClient
) -> None:
    with open_stage(settings, "pams"):
        pass
    experiment = only(stage_runs(client, "pams")).info.experiment_id
    kept = {"mlflow.experimentKind": "genai_development", "mlflow.note.content": "mine"}
    for name, value in kept.items():
        client.set_experiment_tag(experiment, name, value)
    with open_stage(settings, "cadyq"):
        pass
    assert kept.items() <= client.get_experiment(experiment).tags.items()


def test_a_dvc_experiment_gives_its_name(
    settings: TrackingSettings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "husky-yawn")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "f" * 40)
    subprocess.run(["git", "init", "-q"], check=True)
    with open_stage(settings, "pams"):
        pass
    with open_stage(settings, "cadyq", pipeline_key="changed params"):
        pass
    parent = only(stage_runs(client, "pipeline"))
    child = only(stage_runs(client, "cadyq"))
    assert parent.info.run_name == "husky-yawn"
    assert parent.data.tags["experiment"] == "husky-yawn"
    assert child.info.run_name == "cadyq (husky-yawn)"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["experiment"] == "husky-yawn"
    assert child.data.tags["baseline"] == "f" * 40
    assert child.data.tags["dirty"] == "false"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(1), "FAILED"),
        (ValueError("alpha is NaN"), "FAILED"),
        (SystemExit(0), "FINISHED"),
    ],
    ids=repr,
)
def test_the_end_of_a_stage_is_the_status_of_its_run(
    settings: TrackingSettings, client: MlflowClient, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)), open_stage(settings) as run:
        run.metrics({"loss": 1.0}, 1)
        raise error
    stored = only(stage_runs(client))
    assert stored.info.status == status
    assert stored.data.metrics == {"loss": 1.0}
    assert only(stage_runs(client, "pipeline")).info.status == status
    if isinstance(error, ValueError):
        assert stored.data.tags["error"] == "ValueError: alpha is NaN"


def test_an_interrupted_stage_resumes_its_run(settings: TrackingSettings, client: MlflowClient) -> None:
    with pytest.raises(KeyboardInterrupt), open_stage(settings) as run:
        run.metrics({"loss": 2.0}, 1)
        raise KeyboardInterrupt
    changed = {"seed": 2, "new": 3}
    with open_stage(settings, params=changed) as run:
        run.metrics({"loss": 1.0}, 2)
    stored = only(stage_runs(client))
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"seed": "1", "new": "3"}
    assert stored.data.tags["params.changed"] == "seed: 1 -> 2"
    history = client.get_metric_history(stored.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]

    with open_stage(settings):  # a finished run stays as it is
        pass
    assert len(stage_runs(client)) == 2
    assert len(stage_runs(client, "pipeline")) == 1


def test_a_killed_stage_resumes_its_run(settings: TrackingSettings, client: MlflowClient) -> None:
    done = python(
        """
        with open_stage() as run:
            run.metrics({"loss": 2.0}, 1)
            run.call(lambda client, run_id: None, 60)
            os.kill(os.getpid(), 9)
    """,
        settings,
    )
    assert done.wait(60) == -signal.SIGKILL
    assert only(stage_runs(client)).info.status == "RUNNING"
    with open_stage(settings) as run:
        run.metrics({"loss": 1.0}, 2)
    assert only(stage_runs(client)).info.status == "FINISHED"
    assert only(stage_runs(client, "pipeline")).info.status == "FINISHED"


# ---------------------------------------------------------------- everything else


def test_disabled_tracking_records_nothing(tmp_path: Path) -> None:
    with open_stage(TrackingSettings(enabled=False)) as run:
        assert isinstance(run, NullTracker)
        train(run)
        run.params({"a": 1})
        run.tags({"a": 1})
        run.dict("a", {})
        run.figure("a", None)  # type: ignore[arg-type]
        assert run.call(lambda client, run_id: 1, 10) is None
    assert list(tmp_path.iterdir()) == []


def test_settings_are_checked() -> None:
    for wrong in ({"unknown": 1}, {"log_every": 0}, {"experiment": ""}):
        with pytest.raises(ValidationError):
            TrackingSettings(**wrong)  # type: ignore[arg-type]


def test_environment_and_loggers_are_restored(
    settings: TrackingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    before = dict(os.environ)
    levels = [logging.getLogger(name).level for name in QUIET_LOGGERS]
    with open_stage(settings):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) < 3
    assert dict(os.environ) == before
    assert [logging.getLogger(name).level for name in QUIET_LOGGERS] == levels


def test_importing_the_module_does_not_import_mlflow_and_telemetry_is_off(
    settings: TrackingSettings,
) -> None:
    done = python(
        """
        assert "mlflow" not in sys.modules and "filelock" not in sys.modules
        with open_stage():
            import mlflow.telemetry.utils
            assert mlflow.telemetry.utils.MLFLOW_DISABLE_TELEMETRY.get() is True
            from mlflow.telemetry import get_telemetry_client
            assert get_telemetry_client() is None
    """,
        settings,
    )
    assert done.wait(60) == 0, done.stderr.read()
