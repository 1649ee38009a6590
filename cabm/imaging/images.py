"""Read and write whole images as (H, W, 3) uint8 arrays of sRGB values in 0..255."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cabm.errors import InputError
from cabm.files import atomic_write
from cabm.imaging.formats import SUFFIXES
from cabm.imaging.pixels import has_alpha
from cabm.imaging.raster import in_memory, rounded_to_8_bits
from cabm.imaging.reader import open_raster
from cabm.imaging.source import ReadOptions

MAX_PIXELS = 256_000_000
"""Default limit of width times height. A header that claims more is usually an attack."""


_WRITTEN = sorted(
    suffix for suffix, entry in SUFFIXES.items() if entry.name in ("png", "tiff", "webp", "jpeg", "bmp")
)


def read_rgb8(
    path: str | Path,
    max_pixels: int = MAX_PIXELS,
    *,
    limit_option: str = "max_pixels",
    notes: list[str] | None = None,
) -> np.ndarray:
    """Read an image file as 8-bit sRGB.

    Colours are converted by the embedded profile. Gray is repeated over three channels, palettes are
    expanded, alpha is dropped and the EXIF orientation is applied. 16 bits are rounded to 8. Only the first
    frame is read.

    Args:
        path: the file.
        max_pixels: largest width times height.
        limit_option: what a message calls the option that raises the limit; empty: there is none.
        notes: gets what was converted or left out.

    Returns:
        (H, W, 3) uint8, 0..255.

    Raises:
        InputError: the file is missing, empty, truncated, too large or not an image.
    """
    options = ReadOptions(max_pixels, to_srgb=True, limit_option=limit_option, damaged_option="")
    raster = in_memory(open_raster(path, options=options))
    if notes is not None:
        notes.extend(raster.all_notes)
    array = raster.array[..., :-1] if has_alpha(raster.channels) else raster.array
    if array.dtype != np.uint8:
        array = rounded_to_8_bits(array)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an 8-bit image in the format of the suffix, atomically.

    Args:
        path: the file to write or replace.
        image: (H, W), (H, W, 3) or (H, W, 4) uint8, 0..255.

    Raises:
        InputError: the suffix is not that of a known format.
    """
    path = Path(path)
    assert image.dtype == np.uint8
    if path.suffix.lower() not in _WRITTEN:
        raise InputError(
            f"{path}: cannot write images as {path.suffix or 'a name without suffix'!r};"
            f" use one of {', '.join(_WRITTEN)}"
        )
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary)
