from __future__ import annotations

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

import pytest
from mlflow.entities import Experiment
from mlflow.tracking import MlflowClient

from cabm.project.sections import TrackingSettings
from cabm.tracking import runs as tracking
from tests.sharing.processes import free_port
from tests.tracking.recorded import (
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
