"""Read and write image files.

Whatever the format, an image inside the package is an (H, W, 3) uint8 array of sRGB values, 0..255.
"""

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

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
"""Names that end so (in any case) are images."""

MAX_PIXELS = 256_000_000
"""Images that claim more pixels are refused by default: such a header is more often an attack."""

_BITS_PER_SAMPLE, _PLANAR_CONFIGURATION, _SEPARATE_PLANES = 258, 284, 2  # TIFF 6.0

_pillow_limit = threading.Lock()


def is_image(path: Path) -> bool:
    """Tell by its name whether a file is an image that :func:`read_rgb8` reads."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_rgb8(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a PNG, JPEG, WebP, TIFF or BMP file as 8-bit RGB.

    Gray images are repeated over three channels, palettes are expanded, an alpha channel is dropped and
    the EXIF orientation is applied. 16 bits of gray are rounded to 8, of colour the upper 8 are kept (as
    Pillow decodes them). Of several frames the first is read.

    Args:
        path: the file.
        max_pixels: the largest width times height to decode.

    Returns:
        (H, W, 3) uint8, 0..255.

    Raises:
        InputError: the file is missing, not an image, truncated, empty or larger than ``max_pixels``.
    """
    with open_image(path, max_pixels) as image:
        if image.mode in ("F", "I"):
            # Pillow would clip these; only 16-bit gray, which some decoders widen, has a known range.
            return _gray16_to_rgb8(Path(path), np.asarray(ImageOps.exif_transpose(image)))
        if image.mode.startswith("I;16"):
            return _gray16_to_rgb8(Path(path), np.asarray(ImageOps.exif_transpose(image)))
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an 8-bit image in the format that the suffix names; never leaves half a file.

    Args:
        path: the file to write or replace.
        image: (H, W) or (H, W, 3) or (H, W, 4) uint8, 0..255.

    Raises:
        InputError: the suffix names no known format.
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
    """Open a file with Pillow, its size checked, and turn every decoding error into InputError.

    Raises:
        InputError: the file is missing, not an image, truncated, empty or larger than ``max_pixels``.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a directory, not an image file" if path.is_dir() else "no such image file"
        raise InputError(f"{path}: {what}")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes); copy it again")
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
            _refuse_planes_of_16_bits(path, image)
            image.load()
            yield image
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image, or a format that is not supported") from None
    except PermissionError:
        raise InputError(f"{path}: cannot be read (permission denied)") from None
    except Exception as error:  # decoders raise anything on broken bytes, SyntaxError included
        raise InputError(f"{path}: the image is corrupt or truncated ({error}); copy it again") from None


def _open_unlimited(path: Path) -> Image.Image:
    """Read the header only, without Pillow's own limit: ours is checked, and can be set."""
    with _pillow_limit, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _refuse_planes_of_16_bits(path: Path, image: Image.Image) -> None:
    """Refuse 16-bit TIFF files that store their colours one after the other: Pillow garbles them."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANAR_CONFIGURATION) == _SEPARATE_PLANES and max(tags.get(_BITS_PER_SAMPLE, (1,))) > 8:
        raise InputError(f"{path}: a TIFF with 16-bit colours in separate planes; save it interleaved")


def _gray16_to_rgb8(path: Path, gray: np.ndarray) -> np.ndarray:
    if gray.dtype.kind == "f" or gray.min() < 0 or gray.max() > 65535:
        raise InputError(
            f"{path}: pixels of type {gray.dtype} have no known range; save it with 8 or 16 bits"
        )
    eight = ((gray.astype(np.int32) + 128) // 257).astype(np.uint8)
    return np.repeat(eight[..., None], 3, axis=2)
