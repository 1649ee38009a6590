"""Open a stage's run as the pipeline does, and find what a store holds of it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from cabm.project.sections import TrackingSettings
from cabm.tracking.runs import open_run
from cabm.tracking.tracker import Tracker

KEY = "0123456789abcdef"


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


def train(run: Tracker, num_steps: int = 200) -> None:
    for step in range(num_steps):
        run.metrics({"loss": 1.0}, step)
    run.dict("notes", "x")
    run.table("table", [{"a": 1}])


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return our own warnings; connections of other tests may log, too."""
    return [record for record in caplog.records if record.name == "cabm.tracking.runs"]


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
