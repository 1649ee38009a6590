"""Fixtures that the whole suite shares."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each, or the workers fight over the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def kept_models_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder without compiled models, which tests may fill; everything else is the user's."""
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = tmp_path_factory.mktemp("cache")
    for name in ("cabm", "cabm/compiled"):
        (own / name).mkdir(parents=True, exist_ok=True)
    (folder / "cabm").mkdir()
    (folder / "cabm" / "compiled").symlink_to(own / "cabm" / "compiled")
    for path in own.iterdir():
        if path.name != "cabm":
            (folder / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The benchmark photographs, which are not part of the repository."""
    root = Path(os.environ.get("CABM_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no test photographs at {root}; set CABM_TEST_DATA")
    return root


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Outputs of the released modules, by backbone name."""

    def load(backbone: str) -> dict[str, np.ndarray]:
        with np.load(REPOSITORY / "tests" / "golden" / f"{backbone}_x4.npz") as archive:
            return dict(archive)

    return load


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite database with MLflow's schema, which takes seconds to make; tests copy it."""
    from mlflow.tracking import MlflowClient

    database = tmp_path_factory.mktemp("mlflow") / "empty.db"
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    client.search_experiments()
    client.search_registered_models()
    return database


@pytest.fixture()
def quiet_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory of the test's own, and nothing that names a store or an experiment."""
    for name in list(os.environ):
        if name.startswith(("DVC_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
