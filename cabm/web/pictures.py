"""The pictures that a page shows of an upscaled image: small enough for a browser."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cabm.imaging.preview import fitting, thumbnail, write_preview
from cabm.imaging.reader import open_raster
from cabm.imaging.source import NO_LIMIT, ReadOptions
from cabm.tiling.plan import TilePlan
from cabm.web.jobs import Upscaled

SHOWN_PIXELS = 16_000_000
"""A larger result is shown smaller: a browser keeps 4 bytes per pixel of both pictures."""
_LOSSLESS_PIXELS = 2_500_000
_DETAIL = (800, 1200)  # height and width of a detail, in pixels of the result
_UNDER_BITS = 1200


@dataclass(frozen=True)
class Pictures:
    """Pictures of an image before and after upscaling.

    Attributes:
        before: the input, enlarged by bicubic interpolation.
        after: the result.
        size: height and width of the result.
        shown: height and width of both pictures.
    """

    before: Path
    after: Path
    size: tuple[int, int]
    shown: tuple[int, int]

    @property
    def whole(self) -> bool:
        """Whether the pictures have every pixel of the result."""
        return self.shown == self.size


@dataclass(frozen=True)
class Shown:
    """An upscaled image and what the page shows of it.

    Attributes:
        upscaled: the image.
        pictures: before and after.
        under: the input as a data URI, for the bit map.
    """

    upscaled: Upscaled
    pictures: Pictures
    under: str


def draw(source: Path, result: Path, folder: Path, options: ReadOptions) -> Pictures:
    """Write the pictures of a whole image into a folder.

    Args:
        source: the input.
        result: the upscaled image.
        folder: for the pictures.
        options: how the input was read.

    Raises:
        InputError: a file cannot be read.
    """
    raster = open_raster(result, NO_LIMIT)
    size = raster.height, raster.width
    share = math.sqrt(min(1.0, SHOWN_PIXELS / (size[0] * size[1])))
    shown = fitting(size, max(1, int(max(size) * share)))
    kind = "png" if shown[0] * shown[1] <= _LOSSLESS_PIXELS else "jpg"
    pictures = Pictures(folder / f"before.{kind}", folder / f"after.{kind}", size, shown)
    write_preview(source, pictures.before, shown, options=options)
    write_preview(result, pictures.after, shown)
    return pictures


def draw_detail(
    source: Path, result: Path, folder: Path, options: ReadOptions, tile_plan: TilePlan, number: int
) -> Pictures:
    """Write the pictures of a tile and its surroundings, with every pixel of the result.

    Args:
        source, result, folder, options: as for `draw`.
        tile_plan: the tiles of the input.
        number: the tile's number.

    Raises:
        InputError: a file cannot be read.
    """
    small, large = open_raster(source, options=options), open_raster(result, NO_LIMIT)
    scales = np.array([large.height / small.height, large.width / small.width])
    box = tile_plan.boxes[number]
    centre = (box[:2] + box[2:]) / 2
    limits = np.array([small.height, small.width])
    sides = np.minimum(np.maximum(np.ceil(np.array(_DETAIL) / scales), 1), limits).astype(int)
    start = np.clip(np.round(centre - sides / 2), 0, limits - sides).astype(int)
    of_result = np.rint(np.concatenate([start * scales, (start + sides) * scales])).astype(int)
    size = tuple((of_result[2:] - of_result[:2]).tolist())
    pictures = Pictures(folder / f"before-{number}.png", folder / f"after-{number}.png", size, size)
    of_source = (*start.tolist(), *(start + sides).tolist())
    write_preview(source, pictures.before, size, box=of_source, options=options)
    write_preview(result, pictures.after, size, box=tuple(of_result.tolist()))
    return pictures


def under_bits(source: Path, options: ReadOptions) -> str:
    """Return the input to draw bits over as a data URI: gray, as no colour may look like bits, and pale."""
    gray = thumbnail(source, _UNDER_BITS, options=options).mean(axis=2)
    buffer = io.BytesIO()
    Image.fromarray((255 - 0.62 * (255 - gray)).astype(np.uint8)).save(buffer, "jpeg", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
