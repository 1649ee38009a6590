"""The services of docker-compose.yml as processes: its commands and variables, other addresses."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from tests.conftest import REPOSITORY
from tests.sharing.processes import Process, accepts, answers, free_port
from tests.sharing.project import make_project

pytestmark = pytest.mark.slow

NUM_STAGES = 7
DOMAIN = "mlflow.example.org"


@dataclass(frozen=True)
class Services:
    """The file with its variables replaced as Compose does, and ports of this machine."""

    compose: Mapping[str, Any]
    ports: Mapping[str, int]

    def environment(self, service: str) -> dict[str, str]:
        bare = {name: os.environ[name] for name in ("HOME", "PATH", "PYTHONPATH") if name in os.environ}
        settings = self.compose["services"][service]["environment"]
        return bare | {name: str(value) for name, value in settings.items()}


def read_compose(variables: Mapping[str, str], ports: Mapping[str, int]) -> Services:
    text = (REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8")
    for name, port in ports.items():
        text = re.sub(rf"\b{name}:\d+", f"127.0.0.1:{port}", text)

    def value(match: re.Match[str]) -> str:
        name, sign, default = match.groups()
        return variables.get(name) or (default if sign == ":-" else variables[name])

    return Services(yaml.safe_load(re.sub(r"\$\{(\w+)(:.)?([^}]*)\}", value, text)), ports)


def command_of(stage: str) -> list[str]:
    """Return what a stage of the Dockerfile runs."""
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").partition(f" AS {stage}\n")[2]
    command = re.search(r"^CMD (\[.*\])$", text.partition("\nFROM ")[0], re.MULTILINE)
    assert command is not None
    return json.loads(command[1])


def start_postgres(services: Services, folder: Path) -> Process:
    """Start PostgreSQL, with what its image makes of the variables.

    Args:
        services: the variables and the port.
        folder: empty; becomes that of PostgreSQL's user, because it refuses to run as root.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs or shutil.which("setpriv") is None:
        pytest.skip("apt install postgresql")
    variables = services.environment("postgres")
    data, secret = folder / "data", folder / "password"
    data.mkdir()
    secret.write_text(variables["POSTGRES_PASSWORD"])
    user: list[str] = []
    if os.geteuid() == 0:
        user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
        for path in (folder, data, secret):
            shutil.chown(path, "postgres")
    port = str(services.ports["postgres"])
    initdb = [programs[-1] / "initdb", "--pgdata", data, "--pwfile", secret, "--auth", "scram-sha-256"]
    subprocess.run(
        [*user, *initdb, "--username", variables["POSTGRES_USER"]], check=True, stdout=subprocess.DEVNULL
    )
    server = Process(
        [*user, str(programs[-1] / "postgres"), "-D", str(data), "-p", port, "-k", str(data)],
        folder / "postgres.log",
        environment=variables,
        ready=lambda: accepts(services.ports["postgres"]),
    )
    subprocess.run(
        ["createdb", "--host", "127.0.0.1", "--port", port, variables["POSTGRES_DB"]],
        env=variables
        | {"PGUSER": variables["POSTGRES_USER"], "PGPASSWORD": variables["POSTGRES_PASSWORD"]},
        check=True,
    )
    return server


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    pytest.importorskip("psycopg", reason="pip install -e '.[test-servers]'")
    pytest.importorskip("moto.server", reason="pip install -e '.[test-servers]'")
    folder = tmp_path_factory.mktemp("compose")
    # Not below pytest's folders, which other users may not enter.
    database = tempfile.TemporaryDirectory(prefix="cabm-postgres-", ignore_cleanup_errors=True)
    ports = {name: free_port() for name in ("postgres", "minio", "mlflow")}
    variables = {"POSTGRES_PASSWORD": "5a1t", "MINIO_PASSWORD": "p3pp3r0ni", "MLFLOW_DOMAIN": DOMAIN}
    services = read_compose(variables, ports)
    with ExitStack() as stack:
        stack.callback(start_postgres(services, Path(stack.enter_context(database))).stop)
        bucket = services.compose["services"]["bucket"]["command"]
        creating = subprocess.Popen(
            [sys.executable, *bucket[1:]], env=services.environment("bucket"), cwd=folder
        )
        stack.callback(creating.kill)
        minio = Process(  # after the command that waits for it
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(ports["minio"])],
            folder / "minio.log",
            environment=services.environment("minio"),
            ready=lambda: accepts(ports["minio"]),
        )
        stack.callback(minio.stop)
        assert creating.wait(timeout=120) == 0
        command = [sys.executable, "-m", *command_of("mlflow")]
        command[command.index("--port") + 1] = str(ports["mlflow"])
        server = Process(
            command,
            folder / "mlflow.log",
            environment=services.environment("mlflow"),
            ready=lambda: answers(f"http://127.0.0.1:{ports['mlflow']}/health"),
            folder=folder,
        )
        stack.callback(server.stop)
        yield services


def test_a_pipeline_is_recorded_in_postgresql_and_the_bucket(
    services: Services, environment: Mapping[str, str], tmp_path: Path
) -> None:
    import boto3
    import psycopg

    uri = f"http://localhost:{services.ports['mlflow']}"
    project = make_project(tmp_path / "project", {**environment, "MLFLOW_TRACKING_URI": uri})
    project.dvc("repro")

    variables = services.environment("mlflow")
    address = variables["MLFLOW_BACKEND_STORE_URI"].replace("+psycopg", "")
    with closing(psycopg.connect(address)) as database:
        rows = database.execute("SELECT name, status, artifact_uri FROM runs").fetchall()
    assert len(rows) == NUM_STAGES + 1
    assert {status for _, status, _ in rows} == {"FINISHED"}
    store = boto3.resource(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
    )
    stored = [item.key for item in store.Bucket("mlflow").objects.all()]
    for name in ("psnr_against_fab.png", "crops.png", "model.safetensors"):
        assert any(key.endswith(f"/{name}") for key in stored), (name, stored)
    # a client needs no access to the bucket
    client = MlflowClient(tracking_uri=uri)
    version = client.get_model_version_by_alias("cabm-edsr-x2", "champion")
    files = client.list_artifacts(version.run_id)
    assert files


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        (DOMAIN, f"https://{DOMAIN}", 200),
        (DOMAIN, "https://evil.example.org", 403),
        ("evil.example.org", "", 403),
    ],
)
def test_the_pages_work_behind_a_proxy_of_that_name_only(
    host: str, origin: str, status: int, services: Services
) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{services.ports['mlflow']}/api/2.0/mlflow/experiments/search",
        data=b'{"max_results": 1}',
        headers={"Host": host, "Origin": origin, "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == status
    except urllib.error.HTTPError as error:
        assert error.code == status, error.read()
