"""The edge score of a tile: the one number that the bits of a tile are looked up by.

Mean absolute Laplacian of the tile's 8-bit luma (CABM, section 3.2; the operator of the released code,
on the range 0..255). The arithmetic is integer and the same on every device, and equals OpenCV's
``cvtColor(RGB2GRAY)``, ``Laplacian(CV_16S, ksize=3)``, ``convertScaleAbs`` and ``mean`` bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.tiling.plan import TilePlan, bands, reflect_101, split

EDGE_OPERATOR = "laplacian-202080202-reflect101-luma601-uint8"
"""Name of the operator in table files: scores of another operator mean something else."""

# ITU-R 601 weights 0.299, 0.587, 0.114 in 15 fractional bits, rounded as OpenCV rounds them.
_LUMA_WEIGHTS = (9798, 19235, 3735)
_LUMA_SHIFT = 15

EDGE_BLOCK = 8
"""Side in pixels of the blocks that an edge peak is the largest of."""


class TileEdges(NamedTuple):
    """What is measured of the edges of N tiles.

    Attributes:
        scores: (N,) float64 edge scores, in 0..255.
        peaks: (N, R, C) float64 edge peaks of the tiles' parts, in 0..255: of the 8x8 blocks of a part, the
            largest root of the mean squared Laplacian (that of the score, up to 255). A mean over a whole
            tile says little of one thin line in it; the network's gain over bicubic lies in such lines.
            None where they were not asked for.
    """

    scores: Tensor
    peaks: Tensor | None


def edge_score(tiles: Tensor) -> Tensor:
    """Score a batch of tiles of one shape.

    Args:
        tiles: (B, 3, h, w), uint8 or float in 0..255; float is clamped to that range and rounded (half to
            even) to 8 bits. Any size from 1 x 1, any device. Not modified.

    Returns:
        (B,) float64 on the same device, in 0..255.

    Raises:
        ValueError: the shape is not (B, 3, h, w).
    """
    if tiles.ndim != 4 or tiles.shape[1] != 3:
        raise ValueError(f"tiles must be (B, 3, h, w), got {tuple(tiles.shape)}")
    return _mean(_absolute_laplacian(_padded_luma(tiles)))


def edge_scores_of_image(image: Tensor | np.ndarray, tile_plan: TilePlan) -> Tensor:
    """Score all tiles of an image; equal to ``edge_score(split(image, tile_plan))``, and faster.

    Arguments and errors as for `edges_of_image`.

    Returns:
        (N,) float64 in the plan's order, on the image's device.
    """
    return edges_of_image(image, tile_plan).scores


def edges_of_image(image: Tensor | np.ndarray, tile_plan: TilePlan, part: int | None = None) -> TileEdges:
    """Measure the edges of all tiles of an image.

    The luma is computed once per pixel, however much the tiles overlap, and the tiles of one row
    are measured together, so that the work stays in the cache.

    Args:
        image: (3, H, W), or (H, W, 3) as image readers give it; uint8 or float in 0..255. A
            size that could be either is taken as (3, H, W).
        tile_plan: the plan of that size.
        part: side of the parts of a tile that get a peak, a multiple of `EDGE_BLOCK`; None: no peaks.

    Raises:
        ValueError: the shape does not fit the plan, or a part of another size.
    """
    if part is not None and (part < EDGE_BLOCK or part % EDGE_BLOCK):
        raise ValueError(f"parts of {part} pixels: choose a multiple of {EDGE_BLOCK}")
    if isinstance(image, np.ndarray):
        # A copy of a read-only array (a memory map) spares the warning torch gives on those.
        image = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    size = (tile_plan.height, tile_plan.width)
    if image.shape == (*size, 3) and image.shape != (3, *size):
        image = image.permute(2, 0, 1)
    elif image.shape != (3, *size):
        raise ValueError(f"image of shape {tuple(image.shape)} and a plan for {size} pixels")
    scores, peaks = [], []
    for laplacian in _laplacians(image, tile_plan):
        scores.append(_mean(laplacian))
        if part is not None:
            peaks.append(_peaks(laplacian, part))
    return TileEdges(torch.cat(scores), torch.cat(peaks) if peaks else None)


def _laplacians(image: Tensor, tile_plan: TilePlan) -> Iterator[Tensor]:
    """Yield the Laplacian (B, h, w) of the tiles of a (3, H, W) image, row of tiles by row of tiles."""
    if (tile_plan.padded_height, tile_plan.padded_width) != (tile_plan.height, tile_plan.width):
        yield _absolute_laplacian(_padded_luma(split(image, tile_plan)))
        return
    luma = _luma(*_to_uint8(image).unbind(0))
    height, width = tile_plan.tile_height, tile_plan.tile_width
    columns = torch.tensor(tile_plan.column_starts, device=image.device)
    reflected = torch.from_numpy(reflect_101(-1, width + 1, width)).to(image.device)
    index = (columns[:, None] + reflected).flatten()
    for band in bands(tile_plan, 1):
        strip = _reflect(luma[band.image_rows], 0, height)
        tiles = strip.index_select(1, index).view(height + 2, len(columns), width + 2)
        yield _absolute_laplacian(tiles.transpose(0, 1))


def _to_uint8(values: Tensor) -> Tensor:
    if values.dtype == torch.uint8:
        return values
    return values.clamp(0, 255).round().to(torch.uint8)


def _luma(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    """ITU-R 601 luma of uint8 channels, rounded half up to 0..255, as int16."""
    half = 1 << (_LUMA_SHIFT - 1)
    total = red.to(torch.int32).mul_(_LUMA_WEIGHTS[0]).add_(half)
    total.add_(green.to(torch.int32), alpha=_LUMA_WEIGHTS[1])
    total.add_(blue.to(torch.int32), alpha=_LUMA_WEIGHTS[2])
    return total.bitwise_right_shift_(_LUMA_SHIFT).to(torch.int16)


def _reflect(values: Tensor, axis: int, length: int) -> Tensor:
    index = torch.from_numpy(reflect_101(-1, length + 1, length)).to(values.device)
    return values.index_select(axis, index)


def _padded_luma(tiles: Tensor) -> Tensor:
    height, width = tiles.shape[2:]
    return _reflect(_reflect(_luma(*_to_uint8(tiles).unbind(1)), 1, height), 2, width)


def _absolute_laplacian(luma: Tensor) -> Tensor:
    """(B, h + 2, w + 2) int16 luma with its border -> (B, h, w) int16 of min(|Laplacian|, 255).

    The kernel is [2 0 2; 0 -8 0; 2 0 2]: at most 8 * 255 in absolute value, so int16 holds it.
    """
    rows = luma[:, :-2] + luma[:, 2:]
    corners = rows[:, :, :-2] + rows[:, :, 2:]
    return corners.sub_(luma[:, 1:-1, 1:-1], alpha=4).mul_(2).abs_().clamp_(max=255)


def _mean(laplacian: Tensor) -> Tensor:
    height, width = laplacian.shape[1:]
    return laplacian.sum(dim=(1, 2), dtype=torch.int64).double() / (height * width)


def _peaks(laplacian: Tensor, part: int) -> Tensor:
    """(B, h, w) int16 -> (B, R, C) float64; blocks at the lower and right ends may be smaller."""
    height, width = laplacian.shape[1:]
    missing = (0, -width % part, 0, -height % part)
    # at most 64 squares of 255: int32 holds a block's sum
    squares = F.pad(laplacian.to(torch.int32).square_(), missing)
    sums = squares.unflatten(2, (-1, EDGE_BLOCK)).sum(3, dtype=torch.int32)
    sums = sums.unflatten(1, (-1, EDGE_BLOCK)).sum(2, dtype=torch.int32)
    rows, columns = (
        (length - EDGE_BLOCK * torch.arange(-(-length // part) * part // EDGE_BLOCK)).clamp(1, EDGE_BLOCK)
        for length in (height, width)
    )
    means = sums.double() / (rows[:, None] * columns).to(sums.device)
    blocks = part // EDGE_BLOCK
    return means.unflatten(2, (-1, blocks)).amax(3).unflatten(1, (-1, blocks)).amax(2).sqrt()
