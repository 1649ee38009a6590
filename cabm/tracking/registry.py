"""MLflow's model registry: log the finished model, register it, and move the alias ``champion``."""

from __future__ import annotations

import logging
import math
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import cabm
from cabm.project.sections import ServingSettings
from cabm.tracking.service import COLUMN, MAX_PIXELS, encode
from cabm.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
LOADER_MODULE = "cabm.tracking.service"

PACKAGES = ("mlflow", "torch", "kornia", "numpy", "numba", "pillow", "pydantic", "safetensors")
"""The dependencies of this package that a served model imports."""

REGISTRATION_WAIT_S = 180.0
PATIENCE_S = 10.0  # for a server that does not answer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quality:
    """Measured quality of a model.

    Attributes:
        psnr: dB.
        fab: mean bits of the adaptive positions.
        measured_on: the images and the protocol; qualities compare only if these are equal.
    """

    psnr: float
    fab: float
    measured_on: str

    def beats(self, other: Quality, settings: ServingSettings) -> bool:
        """Whether PSNR is higher at no more FAB, or FAB is lower at no lower PSNR."""
        clearer = self.psnr >= other.psnr + settings.min_psnr_gain and self.fab <= other.fab
        cheaper = self.fab <= other.fab - settings.min_fab_gain and self.psnr >= other.psnr
        return self.measured_on == other.measured_on and (clearer or cheaper)


@dataclass(frozen=True)
class Registered:
    """A new version in the registry, whether it became the champion, and why."""

    name: str
    version: str
    is_champion: bool
    reason: str


def log_and_register(
    tracker: Tracker,
    directory: Path,
    *,
    name: str,
    quality: Quality,
    settings: ServingSettings,
    loader_module: str = LOADER_MODULE,
) -> Registered | None:
    """Log a model directory as a servable model and register it.

    The new version becomes ``champion`` if there is none, or if it beats the present one.

    Args:
        tracker: the run that made the model.
        directory: the model directory.
        name: name of the registered model, such as ``cabm-edsr-x4``.
        quality: compared with the champion's, and stored as tags of the version.
        settings: thresholds of the comparison.
        loader_module: module whose ``_load_pyfunc`` loads the directory for a server.

    Returns:
        The version, or None if nothing is recorded or the store fails, which is logged as a warning.
    """
    if not settings.enabled:
        return None

    def register(client: MlflowClient, run_id: str) -> Registered:
        model_id, location = _log_model(client, run_id, name, directory, loader_module)
        for key in ("psnr", "fab"):
            client.log_metric(run_id, f"model/{key}", getattr(quality, key), model_id=model_id)
        version = _create_version(client, run_id, name, location, model_id, quality)
        is_champion, reason = _compare(client, name, quality, settings)
        client.set_model_version_tag(name, version, "champion", reason)
        if is_champion:
            client.set_registered_model_alias(name, CHAMPION, version)
        return Registered(name, version, is_champion, reason)

    try:
        return tracker.call(register, REGISTRATION_WAIT_S, PATIENCE_S)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        logger.warning("%s is not registered: %s: %s", name, type(error).__name__, reason)
        return None


def _log_model(
    client: MlflowClient, run_id: str, name: str, directory: Path, loader_module: str
) -> tuple[str, str]:
    """Store a model directory, with a copy of this package, under a run; return its id and location.

    ``mlflow.pyfunc.log_model`` would use the process-wide store instead of the client's.
    """
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    run = client.get_run(run_id)
    model = client.create_logged_model(
        run.info.experiment_id, name, source_run_id=run_id, params=run.data.params
    )
    identity = {"model_uuid": model.model_id, "run_id": run_id, "model_id": model.model_id}
    text = Schema([ColSpec("string", COLUMN)])
    status = "FAILED"
    try:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "model"
            pyfunc.save_model(
                target,
                mlflow_model=Model(artifact_path=model.artifact_location, **identity),
                loader_module=loader_module,
                data_path=str(directory),
                code_paths=[str(Path(cabm.__file__).parent)],
                signature=ModelSignature(text, text),
                input_example=pd.DataFrame([{COLUMN: encode(_gradient())}]),
                pip_requirements=[f"{package}=={_version(package)}" for package in PACKAGES],
                model_config={"max_pixels": MAX_PIXELS},
            )
            client.log_model_artifacts(model.model_id, str(target))
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        status = "READY"
    finally:
        client.finalize_logged_model(model.model_id, status)
    return model.model_id, model.artifact_location


def _create_version(
    client: MlflowClient, run_id: str, name: str, location: str, model_id: str, quality: Quality
) -> str:
    """Create the registered model, if there is none of this name, and a version; return its number."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {
        "psnr": str(round(quality.psnr, 4)),
        "fab": str(round(quality.fab, 4)),
        "measured_on": quality.measured_on,
    }
    # with source=f"models:/{model_id}" MLflow would look in the process-wide store
    version = client.create_model_version(
        name, location, run_id, tags, model_id=model_id, await_creation_for=0
    )
    return str(version.version)


def _compare(
    client: MlflowClient, name: str, quality: Quality, settings: ServingSettings
) -> tuple[bool, str]:
    """Return whether a new version becomes the champion, and why."""
    if not (math.isfinite(quality.psnr) and math.isfinite(quality.fab)):
        return False, "no: the quality is not a number"
    aliases = client.get_registered_model(name).aliases
    if CHAMPION not in aliases:
        return True, "yes: the first"
    number = aliases[CHAMPION]
    tags = client.get_model_version(name, str(number)).tags
    try:
        champion = Quality(float(tags["psnr"]), float(tags["fab"]), tags["measured_on"])
    except (KeyError, ValueError):
        return False, f"no: version {number} has no quality to compare with; move the alias by hand"
    facts = f"{quality.psnr:.3f} dB at {quality.fab:.3f} bits against version {number}:"
    facts += f" {champion.psnr:.3f} dB at {champion.fab:.3f} bits"
    if champion.measured_on != quality.measured_on:
        return False, f"no: version {number} was measured on {champion.measured_on}; move it by hand"
    return (True, f"yes: {facts}") if quality.beats(champion, settings) else (False, f"no: {facts}")


def _gradient() -> np.ndarray:
    """Return a small image, as the example of an input."""
    rows, columns = np.mgrid[0:24, 0:32].astype(np.uint8) * 8
    return np.stack([rows, columns, np.full_like(rows, 128)], axis=2)


def _version(package: str) -> str:
    return metadata.version(package).partition("+")[0]  # "2.13.0+cpu" is on no public index
