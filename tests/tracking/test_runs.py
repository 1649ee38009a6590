from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from mlflow.entities import Experiment, Run
from mlflow.tracking import MlflowClient
from PIL import Image
from pydantic import ValidationError

from cabm.project.sections import TrackingSettings
from cabm.tracking import runs as tracking
from cabm.tracking.runs import open_run
from cabm.tracking.store import QUIET_LOGGERS
from cabm.tracking.tracker import NullTracker, Tracker

pytestmark = pytest.mark.usefixtures("quiet_surroundings")

KEY = "0123456789abcdef"


@pytest.fixture()
def database(migrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated, tmp_path / "mlflow.db"))


@pytest.fixture()
def settings(database: Path) -> TrackingSettings:
    return TrackingSettings(uri=f"sqlite:///{database}")


@pytest.fixture()
def client(settings: TrackingSettings) -> MlflowClient:
    return MlflowClient(tracking_uri=settings.uri)


def open_stage(settings: TrackingSettings, stage: str = "cadyq", **changes: Any):
    arguments = {"params": {"seed": 1}, "tags": {}, "pipeline_key": KEY} | changes
    return open_run(settings, stage=stage, **arguments)


def runs(client: MlflowClient, experiment: str = "cabm") -> list[Run]:
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"])


def stage_runs(client: MlflowClient, stage: str = "cadyq") -> list[Run]:
    return [run for run in runs(client) if run.data.tags["stage"] == stage]


def only(items: list[Run]) -> Run:
    (item,) = items
    return item


def artifact(client: MlflowClient, run: Run, path: str) -> bytes:
    return Path(client.download_artifacts(run.info.run_id, path)).read_bytes()


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


# ---------------------------------------------------------------- the store


def test_the_default_store_is_the_database_of_the_real_repository(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, copy = tmp_path / "real repository", tmp_path / "copy"
    real.mkdir()
    copy.mkdir()
    shutil.copy(migrated, real / "mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(real))
    monkeypatch.chdir(copy)
    with open_stage(TrackingSettings()) as run:
        run.dict("notes", "x")
    client = MlflowClient(tracking_uri=f"sqlite:///{real / 'mlflow.db'}")
    stored = only(stage_runs(client))
    assert artifact(client, stored, "notes.json") == b'"x"'
    assert list(copy.iterdir()) == []
    assert (real / "mlartifacts").is_dir()
    assert not (real / "mlruns").exists()


def test_the_store_can_be_named_by_the_environment(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(migrated, tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    with open_stage(TrackingSettings(experiment="mine")):
        pass
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'other.db'}")
    assert len(runs(client, "mine")) == 2


def test_two_clones_of_equal_params_keep_their_runs_apart(
    settings: TrackingSettings, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, loss in (("first", 1.0), ("second", 2.0)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with pytest.raises(KeyboardInterrupt), open_stage(settings) as run:
            run.metrics({"loss": loss}, 1)
            raise KeyboardInterrupt
    stored = stage_runs(client)
    assert [run.data.metrics["loss"] for run in stored] == [1.0, 2.0]
    assert len({run.data.tags["mlflow.parentRunId"] for run in stored}) == 2


def test_an_experiment_that_another_process_creates_first_is_used(
    settings: TrackingSettings, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process creates it after our search and before our creation."""
    theirs = client.create_experiment("cabm")
    look, looks = MlflowClient.get_experiment_by_name, []

    def look_too_early(self: MlflowClient, name: str) -> Experiment | None:
        looks.append(name)
        return None if len(looks) == 1 else look(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", look_too_early)
    with open_stage(settings) as run:
        run.metrics({"loss": 1.0}, 1)
    assert len(looks) == 2
    assert only(stage_runs(client)).info.experiment_id == theirs


@pytest.mark.slow
def test_two_processes_share_a_fresh_database(tmp_path: Path) -> None:
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path / 'fresh.db'}")
    script = """
        with open_stage(sys.argv[1], "same" if sys.argv[2] == "same" else sys.argv[1]) as run:
            for step in range(200):
                run.metrics({"loss": 1.0}, step)
                time.sleep(0.001)
            assert run.call(lambda client, run_id: True, 60)
    """
    processes = [python(script, settings, stage, "same") for stage in ("pams", "cadyq")]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert [process.stderr.read() for process in processes] == ["", ""]
    client = MlflowClient(tracking_uri=settings.uri)
    parent = only(stage_runs(client, "pipeline"))
    for stage in ("pams", "cadyq"):
        stored = only(stage_runs(client, stage))
        assert stored.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert len(client.get_metric_history(stored.info.run_id, "loss")) == 200


def test_a_locked_database_delays_records_but_not_the_stage(
    settings: TrackingSettings, client: MlflowClient, database: Path
) -> None:
    with open_stage(settings) as run:
        run.call(lambda store, run_id: None, 20)
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            started = time.monotonic()
            for step in range(1000):
                run.metrics({"loss": 1.0}, step)
            assert time.monotonic() - started < 1
            time.sleep(0.5)
            other.execute("ROLLBACK")
    stored = only(stage_runs(client))
    assert len(client.get_metric_history(stored.info.run_id, "loss")) == 1000
    assert stored.info.status == "FINISHED"


def test_a_deleted_experiment_is_one_clear_warning(
    settings: TrackingSettings, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.delete_experiment(client.create_experiment("cabm"))
    with open_stage(settings) as run:
        run.metrics({"loss": 1.0}, 1)
    assert "experiment 'cabm' was deleted; restore it" in caplog.text


@pytest.mark.parametrize(
    "uri",
    ["file:runs", "gopher://host", "http://", "sqlite:////proc/none/mlflow.db", "sqlite:///text.db"],
)
def test_a_store_that_cannot_work_is_one_warning(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "text.db").write_text("this is not a database" * 100)
    with open_stage(TrackingSettings(uri=uri)) as run:
        train(run)
        closing_at = time.monotonic()
    assert time.monotonic() - closing_at < 8
    assert warnings_of(caplog)[0].levelname == "WARNING"
    assert len(warnings_of(caplog)) <= 2
    assert "\n" not in warnings_of(caplog)[0].message
    assert capfd.readouterr() == ("", "")


def train(run: Tracker, num_steps: int = 200) -> None:
    for step in range(num_steps):
        run.metrics({"loss": 1.0}, step)
    run.dict("notes", "x")
    run.table("table", [{"a": 1}])


def test_no_server_never_slows_a_stage(caplog: pytest.LogCaptureFixture) -> None:
    uri = f"http://user:hunter2@127.0.0.1:{free_port()}"
    with open_stage(TrackingSettings(uri=uri)) as run:
        started = time.monotonic()
        train(run)
        assert time.monotonic() - started < 1
        assert run.call(lambda client, run_id: 1, 0.1) is None
        closing_at = time.monotonic()
    assert time.monotonic() - closing_at < 8
    assert len(warnings_of(caplog)) == 2
    assert "MLflow does not answer" in warnings_of(caplog)[0].message
    assert "did not reach MLflow" in warnings_of(caplog)[1].message
    assert "hunter2" not in caplog.text


def test_a_server_that_never_answers_never_slows_a_stage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "EXIT_WAIT_S", 1.0)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        with open_stage(TrackingSettings(uri=f"http://127.0.0.1:{port}")) as run:
            started = time.monotonic()
            train(run)
            assert time.monotonic() - started < 1
            closing_at = time.monotonic()
        assert time.monotonic() - closing_at < 4
    assert "did not reach MLflow" in caplog.text


def test_the_wrong_server_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    import http.server

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with open_stage(TrackingSettings(uri=f"http://127.0.0.1:{server.server_port}")) as run:
            train(run)
            closing_at = time.monotonic()
        assert time.monotonic() - closing_at < 8
        server.shutdown()
    assert "MLflow cannot be used" in warnings_of(caplog)[0].message
    assert len(warnings_of(caplog)) == 2


# ---------------------------------------------------------------- a real server


class Server:
    """``mlflow server`` on a copy of the empty database; it can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
                time.sleep(0.1)

    def stop(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture()
def server(migrated: Path, tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(migrated, folder / "mlflow.db")
    server = Server(folder)
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
def test_a_server_holds_the_same_as_a_database(server: Server) -> None:
    settings = TrackingSettings(uri=server.uri)
    with open_stage(settings) as run:
        train(run)
    client = MlflowClient(tracking_uri=server.uri)
    stored = only(stage_runs(client))
    assert stored.info.status == "FINISHED"
    assert artifact(client, stored, "notes.json") == b'"x"'
    assert len(client.get_metric_history(stored.info.run_id, "loss")) == 200
    assert only(stage_runs(client, "pipeline")).info.status == "FINISHED"


@pytest.mark.slow
def test_several_clones_may_be_the_first_users_of_a_server(server: Server, tmp_path: Path) -> None:
    script = """
        from mlflow.tracking import MlflowClient  # takes seconds
        while not os.path.exists("../start"):
            time.sleep(0.001)
        with open_stage() as run:
            assert run.call(lambda client, run_id: True, 60)
    """
    processes = []
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
        processes.append(python(script, TrackingSettings(uri=server.uri), folder=tmp_path / name))
    time.sleep(10)
    (tmp_path / "start").touch()
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert [process.stderr.read() for process in processes] == ["", "", ""]
    client = MlflowClient(tracking_uri=server.uri)
    assert [run.info.status for run in stage_runs(client)] == ["FINISHED"] * 3
    assert len({run.data.tags["mlflow.parentRunId"] for run in stage_runs(client)}) == 3


@pytest.mark.slow
def test_a_server_killed_in_the_middle_never_stops_a_stage(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    longest = 0.0
    with open_stage(TrackingSettings(uri=server.uri)) as run:
        assert run.call(lambda client, run_id: True, 60)
        for step in range(400):
            if step == 100:
                server.stop()
            started = time.monotonic()
            run.metrics({"loss": 1.0}, step)
            if step % 50 == 0:
                run.dict("notes", step)
            longest = max(longest, time.monotonic() - started)
            time.sleep(0.005)
        closing_at = time.monotonic()
    assert longest < 0.5
    assert time.monotonic() - closing_at < 8
    assert len(warnings_of(caplog)) == 2
    assert "MLflow does not answer" in warnings_of(caplog)[0].message


@pytest.mark.slow
def test_a_server_that_comes_back_has_everything(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with open_stage(TrackingSettings(uri=server.uri)) as run:
        run.metrics({"loss": 1.0}, 0)
        assert run.call(lambda client, run_id: True, 60)
        server.stop()
        for step in range(1, 300):
            run.metrics({"loss": 1.0}, step)
        while not warnings_of(caplog):
            time.sleep(0.05)
        server.start()
        assert run.call(lambda client, run_id: True, 120)
    client = MlflowClient(tracking_uri=server.uri)
    stored = only(stage_runs(client))
    assert len(client.get_metric_history(stored.info.run_id, "loss")) == 300
    assert stored.info.status == "FINISHED"
    assert len(warnings_of(caplog)) == 1


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


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return our own warnings; connections of other tests may log, too."""
    return [record for record in caplog.records if record.name == "cabm.tracking.runs"]


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return server.getsockname()[1]


def python(
    body: str, settings: TrackingSettings, *arguments: str, folder: Path | None = None
) -> subprocess.Popen[str]:
    """Start a process that runs ``body``, which may call ``open_stage``."""
    lines = body.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    script = f"""
import os, sys, time
from cabm.project.sections import TrackingSettings
from cabm.tracking.runs import open_run
def open_stage(stage="cadyq", key={KEY!r}):
    settings = TrackingSettings(uri={settings.uri!r})
    return open_run(settings, stage=stage, params={{"seed": 1}}, tags={{}}, pipeline_key=key)
""" + "\n".join(line[indent:] for line in lines)
    environment = {name: os.environ[name] for name in os.environ if name != "MLFLOW_DISABLE_TELEMETRY"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    )
