"""Decode with Pillow: whole files where libvips has no decoder, and animations frame by frame."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from PIL import Image, UnidentifiedImageError

from cabm.errors import InputError
from cabm.imaging.formats import damaged, format_of
from cabm.imaging.raster import image_array

_FIELDS = {"icc_profile": "icc-profile-data", "exif": "exif-data", "xmp": "xmp-data"}
_limit = threading.Lock()


@contextmanager
def open_with_pillow(path: Path) -> Iterator[Image.Image]:
    """Open a file with Pillow, whatever its size; errors of decoding become InputError.

    Raises:
        InputError: the file is truncated, or not an image.
    """
    try:
        with _open_unlimited(path) as image:
            yield image
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image, or a format that is not supported") from None
    except Exception as error:  # decoders raise anything on broken bytes, even SyntaxError
        raise damaged(path, error) from None


def libvips_image(image: Image.Image) -> Any:
    """Return an image of Pillow as an image of libvips, with its metadata."""
    image.load()
    info = dict(image.info)
    if image.mode == "LAB":
        array = np.asarray(image).astype(np.float32)
        # a and b are signed bytes
        array[..., 1:] -= 256 * (array[..., 1:] > 127)
        array[..., 0] *= 100 / 255
        interpretation = "lab"
    else:
        array = np.atleast_3d(image_array(image))
        gray = "grey16" if array.dtype == np.uint16 else "b-w"
        interpretation = gray if array.shape[2] < 3 else "srgb"
    found = pyvips.Image.new_from_array(array).copy(interpretation=interpretation)
    for name, field in _FIELDS.items():
        if isinstance(info.get(name), bytes) and info[name] and interpretation != "lab":
            found.set_type(pyvips.GValue.blob_type, field, info[name])
    density = info.get("dpi")
    return found.copy(xres=density[0] / 25.4, yres=density[1] / 25.4) if density else found


def _open_unlimited(path: Path) -> Image.Image:
    """Read the header without Pillow's own limit on pixels, which is global."""
    with _limit, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            if format_of(path).module:
                from pillow_heif import HeifImageFile

                return HeifImageFile(path)
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = before
