"""The Dockerfile and docker-compose.yml name options, extras and files that exist."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cabm.cli.main import app
from tests.conftest import REPOSITORY

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
IMAGE = DOCKERFILE.rpartition("\nFROM ")[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_image_serves_the_page_on_the_port_that_it_exposes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    served: dict[str, Any] = {}
    monkeypatch.setattr("cabm.web.server.serve", lambda models, limits, **options: served.update(options))
    command = json.loads(re.findall(r"^CMD (.*)$", IMAGE, re.MULTILINE)[0])
    assert CliRunner().invoke(app, command).exit_code == 0
    exposed = re.findall(r"^EXPOSE (\d+)$", IMAGE, re.MULTILINE)
    assert (served["host"], [str(served["port"])]) == ("0.0.0.0", exposed)
    assert f"http://127.0.0.1:{exposed[0]}'" in IMAGE.partition("HEALTHCHECK")[2]


def test_the_image_has_what_the_package_needs() -> None:
    extras = re.findall(r'"/src\[([\w,]+)\]"', DOCKERFILE)
    assert extras and set(extras[0].split(",")) <= set(PROJECT["optional-dependencies"])
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = {line[1:] for line in lines if line.startswith("!")}
    assert {"cabm", "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= copied
    assert set(re.findall(r"^COPY (\w[\w.]*) ", DOCKERFILE, re.MULTILINE)) <= copied
    assert all((REPOSITORY / name).exists() for name in copied)


def test_mlflow_has_the_keys_of_the_store_and_the_database() -> None:
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8"))
    settings = compose["services"]["mlflow"]["environment"]

    def bare(name: str) -> str:
        return re.sub(r":\?[^}]*", "", settings[name])

    assert bare("AWS_ACCESS_KEY_ID") == bare("MINIO_ROOT_USER")
    assert bare("AWS_SECRET_ACCESS_KEY") == bare("MINIO_ROOT_PASSWORD")
    user, password, name = (bare(f"POSTGRES_{part}") for part in ("USER", "PASSWORD", "DB"))
    assert (
        bare("MLFLOW_BACKEND_STORE_URI") == f"postgresql+psycopg://{user}:{password}@postgres:5432/{name}"
    )
    assert all(compose["services"][service]["environment"] == settings for service in compose["services"])
    stages = re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, re.MULTILINE)
    builds = [service["build"] for service in compose["services"].values() if "build" in service]
    assert builds and {build["target"] for build in builds} <= set(stages)
