"""Join upscaled tiles without seams, one row of tiles at a time.

Where two tiles overlap, one fades linearly into the other across the middle half of the overlap, first
along the rows, then along the columns. The outer quarters are unused, because a tile is least accurate
near its border: for a trained EDSR, fading across the whole overlap doubles the squared distance to the
image upscaled whole, and a hard cut leaves higher peaks. Neighbours may differ for good reason (other
bits, or bicubic in place of the network), and a hard edge between them would show in flat areas, where
the eye is most sensitive. Where both agree, fading changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from cabm.tiling.plan import TilePlan

MAX_FADE = 8
"""Longest fade, in low-resolution pixels."""


def fades(starts: Sequence[int], tile: int, scale: int) -> list[tuple[int, int]]:
    """Return the output ranges (first, end) in which each tile along an axis fades into the next.

    Args:
        starts: first input pixel of each tile, ascending.
        tile: side of a tile in input pixels.
        scale: output pixels per input pixel.

    Returns:
        len(starts) - 1 disjoint ranges, ascending. An empty one (first == end) is a hard cut halfway
        between the two centres.
    """
    gaps = [(after - before) * scale // 2 for before, after in zip(starts, starts[2:], strict=False)]
    most = min([MAX_FADE * scale, *gaps])
    ranges = []
    for start, following in pairwise(starts):
        first, end = following * scale, (start + tile) * scale
        overlap = end - first
        # the same trim on both sides: the middle pixel of an odd overlap is at least mixed half and half
        trim = min((overlap - min(most, overlap // 2) + 1) // 2, overlap // 2)
        ranges.append((first + trim, end - trim))
    return ranges


class TileJoiner:
    """Takes rows of tiles from the top down and returns the rows of pixels that are finished.

    Args:
        tile_plan: the plan that the tiles were split by.
        scale: output pixels per input pixel.
    """

    def __init__(self, tile_plan: TilePlan, scale: int) -> None:
        self._plan = tile_plan
        self._scale = scale
        self._rows = fades(tile_plan.row_starts, tile_plan.tile_height, scale)
        self._columns = fades(tile_plan.column_starts, tile_plan.tile_width, scale)
        self._next = 0
        self._held: np.ndarray | None = None  # the part of the last row of tiles that fades into the next

    def add(self, tiles: np.ndarray) -> np.ndarray:
        """Add the next row of tiles and return the rows of pixels that it completes.

        Args:
            tiles: (num_columns, C, tile_height * scale, tile_width * scale), an integer type.

        Returns:
            (n, width * scale, C): the rows below those of the previous call.
        """
        row, scale = self._next, self._scale
        self._next += 1
        strip = self._join(tiles)
        top = self._plan.row_starts[row] * scale
        begin = self._rows[row - 1][0] if row else 0
        last = row == self._plan.num_rows - 1
        end = self._plan.height * scale if last else self._rows[row][0]
        finished = strip[begin - top : end - top]
        if self._held is not None and len(self._held):
            fade = len(self._held)
            finished[:fade] = _fade(self._held, finished[:fade], axis=0)
        self._held = None if last else strip[end - top : self._rows[row][1] - top].copy()
        return finished

    def _join(self, tiles: np.ndarray) -> np.ndarray:
        """Join one row of tiles: (columns, C, h, w) -> (h, width * scale, C)."""
        scale = self._scale
        tiles = tiles.transpose(0, 2, 3, 1)
        strip = np.empty((tiles.shape[1], self._plan.width * scale, tiles.shape[3]), tiles.dtype)
        begin = 0
        for column, (tile, start) in enumerate(zip(tiles, self._plan.column_starts, strict=True)):
            left = start * scale
            if column == len(tiles) - 1:
                strip[:, begin:] = tile[:, begin - left : self._plan.width * scale - left]
                break
            first, end = self._columns[column]
            strip[:, begin:first] = tile[:, begin - left : first - left]
            following = self._plan.column_starts[column + 1] * scale
            strip[:, first:end] = _fade(
                tile[:, first - left : end - left],
                tiles[column + 1][:, first - following : end - following],
                axis=1,
            )
            begin = end
        return strip


def blend_tiles(tiles: np.ndarray, tile_plan: TilePlan, scale: int) -> np.ndarray:
    """Join all tiles of an image.

    Args:
        tiles: (N, C, tile_height * scale, tile_width * scale), an integer type, in the plan's order.
        tile_plan: the plan that the tiles were split by.
        scale: output pixels per input pixel.

    Returns:
        (height * scale, width * scale, C).
    """
    joiner = TileJoiner(tile_plan, scale)
    columns = tile_plan.num_columns
    rows = [joiner.add(tiles[i * columns : (i + 1) * columns]) for i in range(tile_plan.num_rows)]
    return np.concatenate(rows)


def _fade(before: np.ndarray, after: np.ndarray, axis: int) -> np.ndarray:
    """Fade one (h, w, C) array into another along an axis, and round."""
    length = before.shape[axis]
    weight = (np.arange(length, dtype=np.float32) + 0.5) / max(length, 1)
    weight = weight.reshape([-1 if i == axis else 1 for i in range(before.ndim)])
    mixed = before + (after.astype(np.float32) - before) * weight
    return np.rint(mixed).astype(before.dtype)
