"""Edge scores: the number that selects a tile's bits.

The edge score is the mean absolute Laplacian of a tile's 8-bit luma (CABM, section 3.2; the operator of
the released code, in 0..255). Integer arithmetic makes it identical on every device. It equals OpenCV's
``cvtColor(RGB2GRAY)``, ``Laplacian(CV_16S, ksize=3)``, ``convertScaleAbs`` and ``mean`` bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cabm.imaging.pixels import LUMA_SHIFT, LUMA_WEIGHTS
from cabm.tiling.plan import TilePlan, bands, reflect_101, split

EDGE_OPERATOR = "laplacian-202080202-reflect101-luma601-uint8"
"""Name of the operator in table files. Scores of different operators cannot be compared."""

EDGE_BLOCK = 8
"""Side in pixels of the blocks that edge peaks are taken over."""

_LUMA_ROWS = 64  # whose luma is computed at once, so that it stays in the cache


class TileEdges(NamedTuple):
    """Edge measurements of N tiles.

    Attributes:
        scores: (N,) float64 edge scores, in 0..255.
        peaks: (N, R, C) float64 edge peaks of the tiles' parts, in 0..255, or None if not requested. The
            peak of a part is the largest root mean square, over its 8 x 8 blocks, of the score's
            Laplacian. The mean over a whole tile hardly shows a single thin line, but the network's gain
            over bicubic comes from such lines.
    """

    scores: np.ndarray
    peaks: np.ndarray | None


def edge_score(tiles: np.ndarray) -> np.ndarray:
    """Score a batch of tiles of one shape.

    Args:
        tiles: (B, 3, h, w), uint8, or float, which is clamped to 0..255 and rounded half to even. Any size
            from 1 x 1. Not modified.

    Returns:
        (B,) float64, in 0..255.

    Raises:
        ValueError: the shape is not (B, 3, h, w).
    """
    if tiles.ndim != 4 or tiles.shape[1] != 3:
        raise ValueError(f"tiles must be (B, 3, h, w), got {tiles.shape}")
    return _mean(_absolute_laplacian(_padded_luma(tiles)))


def edges_of_image(image: np.ndarray, tile_plan: TilePlan, part: int | None = None) -> TileEdges:
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
    size = (tile_plan.height, tile_plan.width)
    if image.shape == (*size, 3) and image.shape != (3, *size):
        image = image.transpose(2, 0, 1)
    elif image.shape != (3, *size):
        raise ValueError(f"image of shape {image.shape} does not fit a plan for {size} pixels")
    scores, peaks = [], []
    for laplacian in _laplacians(image, tile_plan):
        scores.append(_mean(laplacian))
        if part is not None:
            peaks.append(_peaks(laplacian, part))
    return TileEdges(np.concatenate(scores), np.concatenate(peaks) if peaks else None)


def _laplacians(image: np.ndarray, tile_plan: TilePlan) -> Iterator[np.ndarray]:
    """Yield the Laplacians (B, h, w) of each row of tiles of a (3, H, W) image."""
    if (tile_plan.padded_height, tile_plan.padded_width) != (tile_plan.height, tile_plan.width):
        yield _absolute_laplacian(_padded_luma(split(image, tile_plan)))
        return
    luma = np.empty(image.shape[1:], np.int16)
    for top in range(0, len(luma), _LUMA_ROWS):
        rows = slice(top, top + _LUMA_ROWS)
        luma[rows] = _luma(image[:, rows])
    height, width = tile_plan.tile_height, tile_plan.tile_width
    columns = np.array(tile_plan.column_starts)
    index = columns[:, None] + reflect_101(-1, width + 1, width)
    for band in bands(tile_plan):
        strip = _reflect(luma[band.image_rows], 0, height)
        yield _absolute_laplacian(strip.take(index, axis=1).transpose(1, 0, 2))


def _luma(planes: np.ndarray) -> np.ndarray:
    """Return the ITU-R 601 luma of (3, ...) values in 0..255 as int16 in 0..255, rounded half up."""
    total = np.full(planes.shape[1:], 1 << (LUMA_SHIFT - 1), np.int32)
    for plane, weight in zip(planes, LUMA_WEIGHTS, strict=True):
        weighted = _to_uint8(plane).astype(np.int32)
        weighted *= weight
        total += weighted
    total >>= LUMA_SHIFT
    return total.astype(np.int16)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Clamp to 0..255 and round half to even."""
    return values if values.dtype == np.uint8 else np.rint(values.clip(0, 255)).astype(np.uint8)


def _reflect(values: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Add one reflected element to both ends of an axis."""
    return values.take(reflect_101(-1, length + 1, length), axis)


def _padded_luma(tiles: np.ndarray) -> np.ndarray:
    """(B, 3, h, w) -> (B, h + 2, w + 2) int16 luma with a reflected border."""
    height, width = tiles.shape[2:]
    return _reflect(_reflect(_luma(tiles.transpose(1, 0, 2, 3)), 1, height), 2, width)


def _absolute_laplacian(luma: np.ndarray) -> np.ndarray:
    """(B, h + 2, w + 2) int16 luma with a border -> (B, h, w) int16 of min(|Laplacian|, 255).

    The kernel is [2 0 2; 0 -8 0; 2 0 2]. Its absolute value is at most 8 * 255, which fits int16.
    """
    rows = luma[:, :-2] + luma[:, 2:]
    laplacian = rows[:, :, :-2] + rows[:, :, 2:]
    laplacian -= luma[:, 1:-1, 1:-1] << 2
    laplacian <<= 1
    np.abs(laplacian, out=laplacian)
    return np.minimum(laplacian, 255, out=laplacian)


def _mean(laplacian: np.ndarray) -> np.ndarray:
    """(B, h, w) int16 -> (B,) float64."""
    height, width = laplacian.shape[1:]
    return laplacian.sum(axis=(1, 2), dtype=np.int64) / (height * width)


def _peaks(laplacian: np.ndarray, part: int) -> np.ndarray:
    """(B, h, w) int16 -> (B, R, C) float64; the last blocks along an axis may be smaller."""
    count, height, width = laplacian.shape
    high, wide = (length + -length % part for length in (height, width))
    # a block sums at most 64 squares of 255, which fits int32
    squares = np.zeros((count, high, wide), np.int32)
    np.multiply(laplacian, laplacian, out=squares[:, :height, :width], dtype=np.int32)
    # along the columns first: whole rows are added
    sums = squares.reshape(count, -1, EDGE_BLOCK, wide).sum(axis=2, dtype=np.int32)
    sums = sums.reshape(*sums.shape[:2], -1, EDGE_BLOCK).sum(axis=3, dtype=np.int32)
    rows, columns = (
        (length - np.arange(0, padded, EDGE_BLOCK)).clip(1, EDGE_BLOCK)
        for length, padded in ((height, high), (width, wide))
    )
    means = sums / (rows[:, None] * columns)
    blocks = part // EDGE_BLOCK
    parts = means.reshape(count, high // part, blocks, wide // part, blocks)
    return np.sqrt(parts.max(axis=(2, 4)))
