"""Edge scores: the number that selects a tile's bits.

The edge score is the mean absolute Laplacian of a tile's 8-bit luma (CABM, section 3.2; the operator of
the released code, in 0..255). Integer arithmetic makes it identical on every device. It equals OpenCV's
``cvtColor(RGB2GRAY)``, ``Laplacian(CV_16S, ksize=3)``, ``convertScaleAbs`` and ``mean`` bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.imaging.pixels import LUMA_SHIFT, LUMA_WEIGHTS
from cabm.tiling.plan import TilePlan, bands, reflect_101, split

EDGE_OPERATOR = "laplacian-202080202-reflect101-luma601-uint8"
"""Name of the operator in table files. Scores of different operators cannot be compared."""

EDGE_BLOCK = 8
"""Side in pixels of the blocks that edge peaks are taken over."""


class TileEdges(NamedTuple):
    """Edge measurements of N tiles.

    Attributes:
        scores: (N,) float64 edge scores, in 0..255.
        peaks: (N, R, C) float64 edge peaks of the tiles' parts, in 0..255, or None if not requested. The
            peak of a part is the largest root mean square, over its 8 x 8 blocks, of the score's
            Laplacian. The mean over a whole tile hardly shows a single thin line, but the network's gain
            over bicubic comes from such lines.
    """

    scores: Tensor
    peaks: Tensor | None


def edge_score(tiles: Tensor) -> Tensor:
    """Score a batch of tiles of one shape.

    Args:
        tiles: (B, 3, h, w), uint8, or float, which is clamped to 0..255 and rounded half to even. Any size
            from 1 x 1, any device. Not modified.

    Returns:
        (B,) float64 on the same device, in 0..255.

    Raises:
        ValueError: the shape is not (B, 3, h, w).
    """
    if tiles.ndim != 4 or tiles.shape[1] != 3:
        raise ValueError(f"tiles must be (B, 3, h, w), got {tuple(tiles.shape)}")
    return _mean(_absolute_laplacian(_padded_luma(tiles)))


def edges_of_image(image: Tensor | np.ndarray, tile_plan: TilePlan, part: int | None = None) -> TileEdges:
    """Measure the edges of all tiles of an image.

    The scores equal ``edge_score(split(image, tile_plan))``. They are faster to compute here: the luma is
    computed once per pixel even where tiles overlap, and one row of tiles at a time stays in the cache.

    Args:
        image: (3, H, W) or (H, W, 3), uint8 or float in 0..255. If the shape could be either, it is taken
            as (3, H, W).
        tile_plan: a plan for that size.
        part: side of the parts of a tile to take peaks of, a multiple of `EDGE_BLOCK`; None: no peaks.

    Raises:
        ValueError: the shape does not fit the plan, or ``part`` is not a multiple of `EDGE_BLOCK`.
    """
    if part is not None and (part < EDGE_BLOCK or part % EDGE_BLOCK):
        raise ValueError(f"parts of {part} pixels: choose a multiple of {EDGE_BLOCK}")
    if isinstance(image, np.ndarray):
        # copy a read-only array such as a memory map: torch would warn about it
        image = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    size = (tile_plan.height, tile_plan.width)
    if image.shape == (*size, 3) and image.shape != (3, *size):
        image = image.permute(2, 0, 1)
    elif image.shape != (3, *size):
        raise ValueError(f"image of shape {tuple(image.shape)} does not fit a plan for {size} pixels")
    scores, peaks = [], []
    for laplacian in _laplacians(image, tile_plan):
        scores.append(_mean(laplacian))
        if part is not None:
            peaks.append(_peaks(laplacian, part))
    return TileEdges(torch.cat(scores), torch.cat(peaks) if peaks else None)


def _laplacians(image: Tensor, tile_plan: TilePlan) -> Iterator[Tensor]:
    """Yield the Laplacians (B, h, w) of each row of tiles of a (3, H, W) image."""
    if (tile_plan.padded_height, tile_plan.padded_width) != (tile_plan.height, tile_plan.width):
        yield _absolute_laplacian(_padded_luma(split(image, tile_plan)))
        return
    luma = _luma(*_to_uint8(image).unbind(0))
    height, width = tile_plan.tile_height, tile_plan.tile_width
    columns = torch.tensor(tile_plan.column_starts, device=image.device)
    reflected = torch.from_numpy(reflect_101(-1, width + 1, width)).to(image.device)
    index = (columns[:, None] + reflected).flatten()
    for band in bands(tile_plan):
        strip = _reflect(luma[band.image_rows], 0, height)
        tiles = strip.index_select(1, index).view(height + 2, len(columns), width + 2)
        yield _absolute_laplacian(tiles.transpose(0, 1))


def _to_uint8(values: Tensor) -> Tensor:
    """Clamp to 0..255 and round half to even."""
    if values.dtype == torch.uint8:
        return values
    return values.clamp(0, 255).round().to(torch.uint8)


def _luma(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    """Return the ITU-R 601 luma of uint8 channels as int16 in 0..255, rounded half up."""
    half = 1 << (LUMA_SHIFT - 1)
    total = red.to(torch.int32).mul_(LUMA_WEIGHTS[0]).add_(half)
    total.add_(green.to(torch.int32), alpha=LUMA_WEIGHTS[1])
    total.add_(blue.to(torch.int32), alpha=LUMA_WEIGHTS[2])
    return total.bitwise_right_shift_(LUMA_SHIFT).to(torch.int16)


def _reflect(values: Tensor, axis: int, length: int) -> Tensor:
    """Add one reflected element to both ends of an axis."""
    index = torch.from_numpy(reflect_101(-1, length + 1, length)).to(values.device)
    return values.index_select(axis, index)


def _padded_luma(tiles: Tensor) -> Tensor:
    """(B, 3, h, w) -> (B, h + 2, w + 2) int16 luma with a reflected border."""
    height, width = tiles.shape[2:]
    return _reflect(_reflect(_luma(*_to_uint8(tiles).unbind(1)), 1, height), 2, width)


def _absolute_laplacian(luma: Tensor) -> Tensor:
    """(B, h + 2, w + 2) int16 luma with a border -> (B, h, w) int16 of min(|Laplacian|, 255).

    The kernel is [2 0 2; 0 -8 0; 2 0 2]. Its absolute value is at most 8 * 255, which fits int16.
    """
    rows = luma[:, :-2] + luma[:, 2:]
    corners = rows[:, :, :-2] + rows[:, :, 2:]
    return corners.sub_(luma[:, 1:-1, 1:-1], alpha=4).mul_(2).abs_().clamp_(max=255)


def _mean(laplacian: Tensor) -> Tensor:
    """(B, h, w) int16 -> (B,) float64."""
    height, width = laplacian.shape[1:]
    return laplacian.sum(dim=(1, 2), dtype=torch.int64).double() / (height * width)


def _peaks(laplacian: Tensor, part: int) -> Tensor:
    """(B, h, w) int16 -> (B, R, C) float64; the last blocks along an axis may be smaller."""
    height, width = laplacian.shape[1:]
    missing = (0, -width % part, 0, -height % part)
    # a block sums at most 64 squares of 255, which fits int32
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
