"""Pictures of image files for a screen: 8 bits, sRGB, without alpha, of any size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from cabm.imaging.reader import open_raster
from cabm.imaging.source import NO_LIMIT, ReadOptions, decoding

_JPEG = {"Q": 95, "subsample_mode": "off", "keep": "none"}
_PNG = {"compression": 1, "keep": "none"}


def write_preview(
    source: Path,
    target: Path,
    size: tuple[int, int],
    *,
    box: tuple[int, int, int, int] | None = None,
    options: ReadOptions = NO_LIMIT,
) -> None:
    """Write a picture of an image file. Transparent pixels show white.

    Args:
        source: the image.
        target: a .png or .jpg file to write or replace.
        size: height and width of the picture. Larger than the image: bicubic; smaller: Lanczos.
        box: y0, x0, y1, x1 of the part to show, ends excluded; None: the whole image.
        options: how to read the image.

    Raises:
        InputError: the image cannot be read.
    """
    with decoding(source):
        image = _for_screens(source, options)
        if box is not None:
            y0, x0, y1, x1 = box
            image = image.crop(x0, y0, x1 - x0, y1 - y0)
        image = _resized(image, size)
        image.write_to_file(str(target), **(_PNG if target.suffix == ".png" else _JPEG))


def thumbnail(path: Path, side: int, *, options: ReadOptions = NO_LIMIT) -> np.ndarray:
    """Return a picture of an image file, (h,w,3) uint8, of at most ``side`` pixels a side.

    Raises:
        InputError: the image cannot be read.
    """
    with decoding(path):
        image = _for_screens(path, options)
        return _resized(image, fitting((image.height, image.width), side)).numpy()


def fitting(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return a height and width of the same shape with at most ``side`` pixels a side, not enlarged."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _for_screens(path: Path, options: ReadOptions) -> Any:
    image = open_raster(path, options=replace(options, to_srgb=True)).picture()
    if image.bands in (2, 4):
        image = image.flatten(background=[65535 if image.format == "ushort" else 255])
    return image.colourspace("srgb")


def _resized(image: Any, size: tuple[int, int]) -> Any:
    height, width = size
    if size == (image.height, image.width):
        return image
    scales = width / image.width, height / image.height
    if min(scales) < 1:
        return image.resize(scales[0], vscale=scales[1])
    # `resize` would shift it by half a pixel of the result; here centres of pixels lie as in the network's
    return image.affine(
        [scales[0], 0, 0, scales[1]],
        interpolate=pyvips.Interpolate.new("bicubic"),
        idx=0.5,
        idy=0.5,
        odx=-0.5,
        ody=-0.5,
        oarea=[0, 0, width, height],
        extend="copy",
    )
