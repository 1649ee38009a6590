"""Colour of decoded images: which spaces are kept, and how others become sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from PIL import ImageCms

from cabm.errors import InputError

_SPACES = {"RGB ": "RGB", "GRAY": "gray", "CMYK": "CMYK", "Lab ": "Lab"}
_BYTES_AND_WORDS = ("uchar", "ushort")
_KEPT_SPACES = ("b-w", "grey16", "srgb", "rgb16", "rgb", "multiband")
_SAME_LEVELS = 1
"""Largest difference at which a profile is taken for sRGB."""


def profile_space(icc: bytes) -> str:
    """Return the kind of pixels that a profile describes: ``RGB``, ``gray``, ``CMYK``; empty if damaged."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile
    except (OSError, ValueError):
        return ""
    return _SPACES.get(profile.xcolor_space, profile.xcolor_space.strip())


@lru_cache(maxsize=8)
def is_srgb(icc: bytes) -> bool:
    """Return whether an RGB profile gives the same colours as sRGB, within a level."""
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    image = with_profile(pyvips.Image.new_from_array(grid).copy(interpretation="srgb"), icc)
    found = image.icc_transform("srgb", embedded=True).numpy()
    return bool(np.abs(found.astype(int) - grid).max() <= _SAME_LEVELS)


def with_profile(image: Any, icc: bytes | None) -> Any:
    """Return an image that carries a profile; None removes it."""
    image = image.copy()
    if icc is not None:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", icc)
    elif image.get_typeof("icc-profile-data"):
        image.remove("icc-profile-data")
    return image


def standard(path: Path, image: Any, *, to_srgb: bool) -> tuple[Any, bool, tuple[str, ...]]:
    """Convert a decoded image to 8- or 16-bit gray or RGB, with or without alpha.

    Args:
        path: of the file, for messages.
        image: from libvips.
        to_srgb: convert gray and RGB by the embedded profile, too.

    Returns:
        The image, whether its profile describes it still, and notes about what was converted.

    Raises:
        InputError: the pixels have no known range, or there are too many channels.
    """
    space = image.interpretation
    if space == "cmyk" and image.format in _BYTES_AND_WORDS:
        icc = (
            image.get_typeof("icc-profile-data") and profile_space(image.get("icc-profile-data")) == "CMYK"
        )
        how = "by its profile" if icc else "without a profile"
        image = image if icc else with_profile(image, None)
        converted = image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=_depth(image))
        return converted, False, (f"converted from CMYK to sRGB {how}",)
    if space in ("lab", "labs"):
        depth = 16 if space == "labs" else 8
        converted = image.colourspace("lab").icc_export(output_profile="srgb", depth=depth)
        return converted, False, ("converted from CIELab to sRGB",)
    if image.format not in _BYTES_AND_WORDS or space not in _KEPT_SPACES:
        raise InputError(
            f"{path}: pixels of type {image.format} ({space}) have no known range;"
            " save it with 8 or 16 bits"
        )
    if not 1 <= image.bands <= 4:
        raise InputError(f"{path}: {image.bands} channels; save it as gray or RGB, with or without alpha")
    if image.bands == 3 and space in ("b-w", "grey16"):
        raise InputError(f"{path}: gray with two extra channels; save it with one extra channel, alpha")
    if not image.get_typeof("icc-profile-data"):
        return image, True, ()
    return _by_profile(image, to_srgb)


def gray_to_srgb(image: Any, icc: bytes) -> Any:
    """Convert gray, with or without alpha, by a gray profile, which is then dropped."""
    return with_profile(_to_srgb(with_profile(image, icc), "gray"), None)


def _by_profile(image: Any, to_srgb: bool) -> tuple[Any, bool, tuple[str, ...]]:
    """Convert gray or RGB where that is asked for, and where the profile is for the other of the two."""
    icc = image.get("icc-profile-data")
    found, wanted = profile_space(icc), "gray" if image.bands < 3 else "RGB"
    if found not in ("gray", "RGB"):
        reason = f"is for {found}" if found else "is damaged"
        return image, False, (f"its colour profile {reason}, so colours are taken as sRGB",)
    if found == "RGB" and is_srgb(icc):
        return image, found == wanted, ()
    if found == wanted and not to_srgb:
        return image, True, ()
    return _to_srgb(image, found), False, (f"converted to sRGB by its {found} profile",)


def _to_srgb(image: Any, space: str) -> Any:
    """Convert gray or RGB, with or without alpha, by its profile for ``space``; gray stays gray."""
    colours = image.bands - (image.bands in (2, 4))
    bands = image.extract_band(0, n=colours)
    depth = _depth(image)
    if colours == 3 and space == "RGB":
        converted = bands.icc_transform("srgb", embedded=True, depth=depth)
    else:
        converted = [_gray_to_srgb(band, space, depth) for band in bands.bandsplit()]
        converted = converted[0].bandjoin(converted[1:]) if colours == 3 else converted[0]
    names = ("b-w", "srgb") if depth == 8 else ("grey16", "rgb16")
    if image.bands > colours:
        converted = converted.bandjoin(image.extract_band(colours))
    return converted.copy(interpretation=names[colours == 3])


def _gray_to_srgb(band: Any, space: str, depth: int) -> Any:
    names = ("b-w", "srgb") if depth == 8 else ("grey16", "rgb16")
    if space == "RGB":
        band = band.bandjoin([band, band])
    band = band.copy(interpretation=names[space == "RGB"])
    return band.icc_transform("srgb", embedded=True, depth=depth).extract_band(1)


def _depth(image: Any) -> int:
    return 16 if image.format == "ushort" else 8
