"""One run of the pipeline with one MLflow server, shared by the tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.sharing.processes import Process, answers, free_port
from tests.sharing.project import Clone, make_project, surroundings


@dataclass(frozen=True)
class MlflowServer:
    uri: str
    folder: Path


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return surroundings(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def mlflow_server(
    tmp_path_factory: pytest.TempPathFactory, environment: Mapping[str, str]
) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    server = Process(
        command, folder / "server.log", environment=environment, ready=lambda: answers(f"{uri}/health")
    )
    yield MlflowServer(uri, folder)
    server.stop()


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, environment: Mapping[str, str], mlflow_server: MlflowServer
) -> Clone:
    """A committed project whose pipeline has run once. Tests clone it and do not change it."""
    home = {**environment, "MLFLOW_TRACKING_URI": mlflow_server.uri}
    project = make_project(tmp_path_factory.mktemp("finished") / "project", home)
    project.dvc("repro")
    project.commit("Run the pipeline")
    project.git("tag", "--annotate", "cabm@v0.1.0", "--message", "The first model")
    return project
