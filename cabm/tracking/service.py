"""The registered model as a service: images over HTTP.

MLflow loads a served model through :func:`_load_pyfunc`, from copies of the model directory and of this
package. Nothing is pickled.
"""

from __future__ import annotations

import base64
import binascii
import io
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cabm.errors import InputError
from cabm.imaging.images import read_rgb8

COLUMN = "image"
"""Name of the column of images, in requests and answers."""

MAX_PIXELS = 4_194_304
"""Most pixels in one request: 2048 x 2048."""


class ImageService:
    """Upscales the images of a request: base64 of an image file in, base64 of a PNG file out.

    Args:
        upscale: (H,W,3) uint8 -> (H*scale,W*scale,3) uint8.
        max_pixels: most pixels of all images in one request.
    """

    def __init__(self, upscale: Callable[[np.ndarray], np.ndarray], max_pixels: int = MAX_PIXELS) -> None:
        self._upscale = upscale
        self._max_pixels = max_pixels
        self._one_at_a_time = threading.Lock()  # the server calls from several threads

    def predict(self, model_input: Mapping[str, Any]) -> list[dict[str, str]]:
        """Return one row per image; ``model_input`` has a column ``image`` (such as a DataFrame).

        Raises:
            MlflowException: a row is not base64, not an image, or too large. The server answers
                with HTTP 400 and the message.
        """
        from mlflow.exceptions import MlflowException

        try:
            images = self._decode(list(model_input[COLUMN]))
            with self._one_at_a_time:
                return [{COLUMN: encode(self._upscale(image))} for image in images]
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

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
    """Load a model directory for MLflow, which calls this function by its name."""
    from cabm.upscaling.upscaler import Upscaler

    return ImageService(Upscaler.load(Path(directory)), **(config or {}))


def encode(image: np.ndarray) -> str:
    """Return an image (H,W,3) uint8 as base64 of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


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
            return read_rgb8(path, max_pixels, limit_option="")
        except InputError as error:
            raise InputError(str(error).removeprefix(f"{path}: ")) from None
