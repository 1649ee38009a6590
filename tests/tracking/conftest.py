from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from cabm.project.sections import TrackingSettings


@pytest.fixture()
def database(migrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated, tmp_path / "mlflow.db"))


@pytest.fixture()
def settings(database: Path) -> TrackingSettings:
    return TrackingSettings(uri=f"sqlite:///{database}")


@pytest.fixture()
def client(settings: TrackingSettings) -> MlflowClient:
    return MlflowClient(tracking_uri=settings.uri)
