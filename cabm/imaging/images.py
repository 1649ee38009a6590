"""Read and write whole images as (H, W, 3) uint8 arrays of sRGB values in 0..255."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cabm.errors import InputError
from cabm.files import atomic_write
from cabm.imaging.formats import SUFFIXES, damaged, read_start
from cabm.imaging.raster import rounded_to_8_bits

MAX_PIXELS = 256_000_000
"""Default limit of width times height. A header that claims more is usually an attack."""

_BITS_PER_SAMPLE, _PLANAR_CONFIGURATION, _SEPARATE_PLANES = 258, 284, 2  # TIFF 6.0

_pillow_limit = threading.Lock()


def read_rgb8(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file as 8-bit RGB.

    Gray is repeated over three channels, palettes are expanded, alpha is dropped and the EXIF orientation
    is applied. 16-bit gray is rounded to 8 bits; 16-bit colours lose their lower 8 bits, as Pillow decodes
    them. Only the first frame is read.

    Args:
        path: the file.
        max_pixels: largest width times height.

    Returns:
        (H, W, 3) uint8, 0..255.

    Raises:
        InputError: the file is missing, empty, truncated, too large or not an image.
    """
    with open_image(path, max_pixels) as image:
        # some decoders widen 16-bit gray to "I"; Pillow would clip all of these modes
        if image.mode in ("F", "I") or image.mode.startswith("I;16"):
            gray = _gray16_to_8(Path(path), np.asarray(ImageOps.exif_transpose(image)))
            return np.repeat(gray[..., None], 3, axis=2)
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


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
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path}: cannot write images as {path.suffix or 'a name without suffix'!r};"
            f" use one of {', '.join(sorted(SUFFIXES))}"
        )
    with atomic_write(path) as temporary:
        iio.imwrite(temporary, image, plugin="pillow")


@contextmanager
def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open and decode a file with Pillow; decoding errors become InputError.

    Raises:
        InputError: the file is missing, empty, truncated, too large or not an image.
    """
    path = Path(path)
    read_start(path)
    try:
        with _open_unlimited(path) as image:
            width, height = image.size
            if width < 1 or height < 1:
                raise InputError(f"{path}: the image has no pixels ({width}x{height})")
            if width * height > max_pixels:
                raise InputError(
                    f"{path}: {width}x{height} pixels are more than the limit of {max_pixels};"
                    " split the image or raise the limit"
                )
            _refuse_16_bit_planes(path, image)
            image.load()
            yield image
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image, or a format that is not supported") from None
    except Exception as error:  # decoders raise anything on broken bytes, even SyntaxError
        raise damaged(path, error) from None


def _open_unlimited(path: Path) -> Image.Image:
    """Read the header without Pillow's own limit on pixels, which is global."""
    with _pillow_limit, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _refuse_16_bit_planes(path: Path, image: Image.Image) -> None:
    """Refuse TIFF files with 16-bit colours in separate planes: Pillow decodes them wrongly."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANAR_CONFIGURATION) == _SEPARATE_PLANES and max(tags.get(_BITS_PER_SAMPLE, (1,))) > 8:
        raise InputError(f"{path}: a TIFF with 16-bit colours in separate planes; save it interleaved")


def _gray16_to_8(path: Path, gray: np.ndarray) -> np.ndarray:
    if gray.dtype.kind == "f" or gray.min() < 0 or gray.max() > 65535:
        raise InputError(
            f"{path}: pixels of type {gray.dtype} have no known range; save it with 8 or 16 bits"
        )
    return rounded_to_8_bits(gray)
