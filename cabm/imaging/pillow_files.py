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
from PIL import Image, ImageOps, UnidentifiedImageError

from cabm.errors import InputError
from cabm.imaging.colour import standard
from cabm.imaging.formats import damaged, format_of

_FIELDS = {"icc_profile": "icc-profile-data", "exif": "exif-data", "xmp": "xmp-data"}
# Modes of Pillow. Those of 32 bits, I and F, have no known range: they stay, and are refused as arrays are.
_CONVERTED = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB"}
_CONVERTED |= {"YCbCr": "RGB", "HSV": "RGB"}
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


def image_array(image: Any) -> np.ndarray:
    """Return the array of an image of Pillow, upright, or of anything with ``__array__``.

    Palettes, bits and other modes of Pillow become gray or RGB, with alpha if they have transparency; CMYK
    and CIELab become sRGB, by their profile if they have one.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)  # the array could not say how to turn it
        if image.mode in ("CMYK", "LAB"):
            return standard(Path(image.mode), libvips_image(upright), to_srgb=False)[0].numpy()
        return _gray_or_rgb(upright)
    if not hasattr(image, "__array__"):
        raise TypeError(
            f"an image of type {type(image).__name__}; give a NumPy array or an image of Pillow"
        )
    return np.asarray(image)


def _gray_or_rgb(image: Image.Image) -> np.ndarray:
    if "transparency" in image.info and image.mode in ("1", "L", "P", "RGB"):
        image = image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    elif image.mode in _CONVERTED:
        image = image.convert(_CONVERTED[image.mode])
    array = np.asarray(image)
    # some have another byte order
    return array.astype(np.uint16) if image.mode.startswith("I;16") else array


def libvips_image(image: Image.Image) -> Any:
    """Return an image of Pillow as an image of libvips, with its metadata."""
    image.load()
    info = dict(image.info)
    if image.mode == "LAB":
        array = np.asarray(image).astype(np.float32)
        # a and b are signed bytes
        array[..., 1:] -= 256 * (array[..., 1:] > 127)
        array[..., 0] *= 100 / 255
        info.pop("icc_profile", None)
        interpretation = "lab"
    elif image.mode == "CMYK":
        array, interpretation = np.asarray(image), "cmyk"
    else:
        array = np.atleast_3d(_gray_or_rgb(image))
        gray = "grey16" if array.dtype == np.uint16 else "b-w"
        interpretation = gray if array.shape[2] < 3 else "srgb"
    found = pyvips.Image.new_from_array(array).copy(interpretation=interpretation)
    for name, field in _FIELDS.items():
        if isinstance(info.get(name), bytes) and info[name]:
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
