"""The model as a service: MLflow's registry on one side, images over HTTP on the other.

MLflow loads a served model through :func:`_load_pyfunc` from a plain copy of the model directory and of
this package. Nothing is pickled, neither here nor there.
"""

from __future__ import annotations

import base64
import binascii
import io
import logging
import math
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import cabm
from cabm.errors import InputError
from cabm.imaging.images import read_rgb8
from cabm.project.sections import ServingSettings
from cabm.tracking import runs as tracking
from cabm.tracking.tracker import ServedModel, Tracker

COLUMN = "image"
CHAMPION = "champion"
MAX_PIXELS = 4_194_304
"""Pixels that one request may bring: 2048 x 2048."""

PACKAGES = ("mlflow", "torch", "kornia", "numpy", "imageio", "pillow", "pydantic", "safetensors")
"""What a served model imports, of what this package installs."""

REGISTRATION_WAIT_S = 180.0
PATIENCE_S = 10.0  # with a server that is gone

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quality:
    """How good a model is, and on what.

    Attributes:
        psnr: dB.
        fab: mean bits of the adaptive positions.
        measured_on: names the images and the protocol; only equal names can be compared.
    """

    psnr: float
    fab: float
    measured_on: str

    def beats(self, other: Quality, settings: ServingSettings) -> bool:
        """Whether PSNR is higher at no more FAB, or FAB lower at no lower PSNR."""
        clearer = self.psnr >= other.psnr + settings.min_psnr_gain and self.fab <= other.fab
        cheaper = self.fab <= other.fab - settings.min_fab_gain and self.psnr >= other.psnr
        return self.measured_on == other.measured_on and (clearer or cheaper)


@dataclass(frozen=True)
class Registered:
    """A version in the registry, and what became of the alias ``champion``."""

    name: str
    version: str
    is_champion: bool
    reason: str


class ImageService:
    """Upscales the images of a request: base64 of an image file in, base64 of a PNG file out.

    Args:
        upscale: (H, W, 3) uint8 -> (H * scale, W * scale, 3) uint8.
        max_pixels: the most pixels that the images of one request may have together.
    """

    def __init__(self, upscale: Callable[[np.ndarray], np.ndarray], max_pixels: int = MAX_PIXELS) -> None:
        self._upscale = upscale
        self._max_pixels = max_pixels
        self._one_at_a_time = threading.Lock()  # the server calls from several threads

    def predict(self, model_input: Mapping[str, Any]) -> list[dict[str, str]]:
        """Return one row per image; ``model_input`` has a column ``image`` (a DataFrame will do).

        Raises:
            MlflowException: a row is not base64, not an image, or too large. The server answers
                with HTTP 400 and the message.
        """
        try:
            images = self._decode(list(model_input[COLUMN]))
            with self._one_at_a_time:
                return [{COLUMN: _encode(self._upscale(image))} for image in images]
        except InputError as error:
            raise tracking.bad_request(str(error)) from None

    def _decode(self, values: list[Any]) -> list[np.ndarray]:
        images: list[np.ndarray] = []
        left = self._max_pixels
        for row, value in enumerate(values):
            try:
                images.append(_decode(value, left))
            except InputError as error:
                raise InputError(f"row {row}, column {COLUMN!r}: {error}") from None
            left -= images[-1].shape[0] * images[-1].shape[1]
        return images


def _load_pyfunc(directory: str, config: Mapping[str, Any] | None = None) -> ImageService:
    """Load a model directory for MLflow, which knows this function by its name."""
    from cabm.upscaling.upscaler import Upscaler

    return ImageService(Upscaler.load(Path(directory)), **(config or {}))


def log_and_register(
    tracker: Tracker,
    directory: Path,
    *,
    name: str,
    quality: Quality,
    settings: ServingSettings,
    loader_module: str = __name__,
) -> Registered | None:
    """Log a model directory as a servable model and register it.

    The new version becomes ``champion`` when there is none, or when it beats the present one.

    Args:
        tracker: the run that made the model.
        directory: the model directory.
        name: the registered model, as ``cabm-edsr-x4``.
        quality: what the comparison goes by; kept as tags of the version.
        settings: the thresholds.
        loader_module: the module that loads the directory when the model is served.

    Returns:
        The version; None when nothing is recorded or the store failed, which warns and never raises.
    """
    if not settings.enabled:
        return None
    served = ServedModel(
        name=name,
        loader_module=loader_module,
        data=directory,
        code=Path(cabm.__file__).parent,
        requirements=[f"{package}=={_version(package)}" for package in PACKAGES],
        inputs=[COLUMN],
        outputs=[COLUMN],
        example={COLUMN: _encode(_gradient())},
        config={"max_pixels": MAX_PIXELS},
    )

    def register(client: Any, run_id: str) -> Registered:
        model_id, location = tracking.log_pyfunc(client, run_id, served)
        tags = {"psnr": str(round(quality.psnr, 4)), "fab": str(round(quality.fab, 4))}
        tags |= {"measured_on": quality.measured_on}
        for key in ("psnr", "fab"):
            client.log_metric(run_id, f"model/{key}", getattr(quality, key), model_id=model_id)
        try:
            client.create_registered_model(name)
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
                raise
        # Not source=f"models:/{model_id}": MLflow looks that up in the store of the process.
        version = client.create_model_version(
            name, location, run_id, tags, model_id=model_id, await_creation_for=0
        ).version
        is_champion, reason = _compare(client, name, quality, settings)
        client.set_model_version_tag(name, version, "champion", reason)
        if is_champion:
            client.set_registered_model_alias(name, CHAMPION, version)
        return Registered(name, str(version), is_champion, reason)

    try:
        return tracker.call(register, REGISTRATION_WAIT_S, PATIENCE_S)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        logger.warning("%s is not registered: %s: %s", name, type(error).__name__, reason)
        return None


def _compare(client: Any, name: str, quality: Quality, settings: ServingSettings) -> tuple[bool, str]:
    if not (math.isfinite(quality.psnr) and math.isfinite(quality.fab)):
        return False, "no: its quality is not a number"
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


def _decode(value: Any, max_pixels: int) -> np.ndarray:
    if not isinstance(value, str):
        raise InputError(f"expected base64 text of an image file, found {type(value).__name__}")
    max_chars = (8 * max_pixels + 2**20) * 4 // 3  # 16 bits in four channels, uncompressed
    if len(value) > max_chars:
        raise InputError(f"{len(value)} characters are more than the limit of {max_chars}")
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        found = value[:40] + ("..." if len(value) > 40 else "")
        raise InputError(f"not base64: {found!r}; send the bytes of a PNG file in base64") from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        try:
            return read_rgb8(path, max_pixels)
        except InputError as error:
            raise InputError(str(error).removeprefix(f"{path}: ")) from None


def _encode(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _gradient() -> np.ndarray:
    rows, columns = np.mgrid[0:24, 0:32].astype(np.uint8) * 8
    return np.stack([rows, columns, np.full_like(rows, 128)], axis=2)


def _version(package: str) -> str:
    return metadata.version(package).partition("+")[0]  # "2.13.0+cpu" is on no public index
