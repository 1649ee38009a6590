"""Bypass of smooth parts of tiles, and the rectangles that the network computes instead of whole tiles.

A tile of 96 pixels is seldom smooth everywhere, but often in parts. Each part is bypassed on its own: it
keeps the tile's bicubic upscaling. The other parts are covered by rectangles that cost the least work.
The network computes them with a margin, over which they fade into the bicubic pixels around them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np

from cabm.tiling.plan import TilePlan

MARGIN = 3
"""Input pixels computed around a rectangle, as far as its tile reaches.

The outermost ring is discarded, because the network sees least of its surroundings there. Across the
others, the rectangle fades into the bicubic pixels.
"""

# Fixed cost of one more rectangle, in pixels. 400 was measured with the integer engine, layer by layer;
# in its other modes, any value from 50 to 400 gives the same time per image.
_CALL_PIXELS = 400
_MAX_PARTS = 16  # along a side; tiles with more parts are computed whole
_TILES_TOGETHER = 512  # the search holds a few kilobytes per tile


class Box(NamedTuple):
    """The rows y0..y1 - 1 and columns x0..x1 - 1."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def area(self) -> int:
        """Number of pixels."""
        return (self.y1 - self.y0) * (self.x1 - self.x0)

    def scaled(self, factor: int) -> Box:
        """Return the same box in an image upscaled by ``factor``."""
        return Box(*(factor * value for value in self))


class Region(NamedTuple):
    """A rectangle of a tile that the network computes.

    Attributes:
        core: the parts that it covers.
        outer: the core with its margin, clipped to the tile: the input of the network.
    """

    core: Box
    outer: Box


@dataclass(frozen=True, eq=False)
class TileParts:
    """The parts of N tiles of one shape that may bypass the network.

    Attributes:
        side: side of a part in input pixels; the last parts along an axis may be smaller.
        height, width: shape of the tiles.
        bypassed: (N, R, C) bool, where R x C parts cover a tile.
    """

    side: int
    height: int
    width: int
    bypassed: np.ndarray

    def __post_init__(self) -> None:
        grid = (-(-self.height // self.side), -(-self.width // self.side))
        assert self.bypassed.shape[1:] == grid, (self.bypassed.shape, grid)

    @classmethod
    def all_computed(cls, num_tiles: int, height: int, width: int) -> TileParts:
        """Return tiles of which no part is bypassed."""
        return cls(max(height, width), height, width, np.zeros((num_tiles, 1, 1), dtype=bool))

    def __len__(self) -> int:
        return len(self.bypassed)

    def __getitem__(self, numbers: slice) -> TileParts:
        some = TileParts(self.side, self.height, self.width, self.bypassed[numbers])
        vars(some)["regions"] = self.regions[numbers]  # keep the result of the search
        return some

    @property
    def entered(self) -> np.ndarray:
        """(N,) bool: the tiles with at least one part that enters the network."""
        return ~self.bypassed.all(axis=(1, 2))

    @property
    def share(self) -> np.ndarray:
        """(N,) share of each tile's pixels that keep the bicubic upscaling, 0..1.

        Smaller than the share of ``bypassed`` where a rectangle covers bypassed parts too.
        """
        pixels = [sum(region.core.area for region in regions) for regions in self.regions]
        return 1 - np.array(pixels, dtype=np.float64) / (self.height * self.width)

    @property
    def work(self) -> np.ndarray:
        """(N,) pixels that the network computes, margins included, relative to the tile: 0..1."""
        pixels = [sum(region.outer.area for region in regions) for regions in self.regions]
        return np.array(pixels, dtype=np.float64) / (self.height * self.width)

    @property
    def left_out(self) -> np.ndarray:
        """(N, R, C) bool: the parts that no rectangle covers."""
        left = self.bypassed.copy()
        for tile, regions in zip(left, self.regions, strict=True):
            for region in regions:
                y0, x0, y1, x1 = region.core
                tile[y0 // self.side : -(-y1 // self.side), x0 // self.side : -(-x1 // self.side)] = False
        return left

    @property
    def boxes_left_out(self) -> list[list[Box]]:
        """For each tile, the boxes of the parts that no rectangle covers."""
        rows, columns = _edges(self.height, self.side), _edges(self.width, self.side)
        return [
            [Box(rows[y], columns[x], rows[y + 1], columns[x + 1]) for y, x in np.argwhere(tile).tolist()]
            for tile in self.left_out
        ]

    @cached_property
    def regions(self) -> list[list[Region]]:
        """For each tile, the rectangles that the network computes."""
        rows, columns = _edges(self.height, self.side), _edges(self.width, self.side)
        tile = Box(0, 0, self.height, self.width)
        whole = [[Region(tile, tile)] if entered else [] for entered in self.entered]
        mixed = np.flatnonzero(self.entered & self.bypassed.any(axis=(1, 2)))
        if max(self.bypassed.shape[1:]) > _MAX_PARTS:
            return whole
        for start in range(0, len(mixed), _TILES_TOGETHER):
            numbers = mixed[start : start + _TILES_TOGETHER]
            for number, regions in zip(
                numbers, _cover(~self.bypassed[numbers], rows, columns), strict=True
            ):
                if sum(_work(region.outer) for region in regions) < _work(tile):
                    whole[number] = regions
        return whole


def in_image(tile_plan: TilePlan, boxes: list[list[Box]]) -> tuple[np.ndarray, np.ndarray]:
    """Move boxes of tiles into the image, clipped to the pixels that belong to their tile.

    Returns:
        (n,) the tile of each box that is not empty, and (n, 4) its y0, x0, y1, x1 in input pixels; a limit
        between two tiles may be half a pixel.
    """
    tiles = np.repeat(np.arange(len(boxes)), [len(of_tile) for of_tile in boxes])
    inside = np.array([box for of_tile in boxes for box in of_tile], dtype=np.float64).reshape(-1, 4)
    moved = inside + np.tile(tile_plan.boxes[tiles, :2], 2)
    owned = tile_plan.owned(2)[tiles] / 2
    clipped = np.hstack([np.maximum(moved[:, :2], owned[:, :2]), np.minimum(moved[:, 2:], owned[:, 2:])])
    kept = (clipped[:, :2] < clipped[:, 2:]).all(axis=1)
    return tiles[kept], clipped[kept]


def paste(tile: np.ndarray, piece: np.ndarray, region: Region, scale: int) -> None:
    """Paste an upscaled region into its upscaled tile, in place.

    Args:
        tile: (C, H * scale, W * scale), an integer type.
        piece: (C, h * scale, w * scale), the upscaled ``region.outer``, of the same type.
        region: its place in the tile.
        scale: output pixels per input pixel.
    """
    core, outer = region.core.scaled(scale), region.outer.scaled(scale)
    target = tile[:, outer.y0 : outer.y1, outer.x0 : outer.x1]
    rows = _weights(outer.y0, core.y0, core.y1, outer.y1, scale)
    columns = _weights(outer.x0, core.x0, core.x1, outer.x1, scale)
    top, bottom = core.y0 - outer.y0, core.y1 - outer.y0
    left, right = core.x0 - outer.x0, core.x1 - outer.x0
    target[:, top:bottom, left:right] = piece[:, top:bottom, left:right]
    everywhere = slice(None)
    frame = (
        (slice(0, top), everywhere),
        (slice(bottom, None), everywhere),
        (slice(top, bottom), slice(0, left)),
        (slice(top, bottom), slice(right, None)),
    )
    for ys, xs in frame:
        below = target[:, ys, xs]
        weight = rows[ys, None] * columns[xs]
        below[...] = np.rint(below + (piece[:, ys, xs].astype(np.float32) - below) * weight)


def _weights(start: int, core_start: int, core_end: int, end: int, scale: int) -> np.ndarray:
    """Return the weights of a region along one axis: (end - start,) float32, 1 in its core."""
    weights = np.ones(end - start, dtype=np.float32)
    for length, ramp in ((core_start - start, weights), (end - core_end, weights[::-1])):
        fade = min(length, (MARGIN - 1) * scale)
        ramp[: length - fade] = 0
        ramp[length - fade : length] = (np.arange(fade, dtype=np.float32) + 0.5) / max(fade, 1)
    return weights


def _edges(length: int, side: int) -> list[int]:
    """Return the limits of the parts along an axis."""
    return [*range(0, length, side), length]


def _work(outer: Box) -> int:
    """Return the cost of one call of the network, in pixels."""
    return outer.area + _CALL_PIXELS


def _cover(computed: np.ndarray, rows: list[int], columns: list[int]) -> Iterator[list[Region]]:
    """Yield for each tile the rectangles of least work that cover its computed (N, R, C) parts.

    A box of parts becomes one rectangle or is cut in two along a line between parts, whichever is less
    work; a box without computed parts costs nothing. Dynamic programming over box sizes, from small to
    large, for all positions in all tiles at once.
    """
    n, height, width = computed.shape
    counts = np.zeros((n, height + 1, width + 1), dtype=np.int64)
    counts[:, 1:, 1:] = computed.cumsum(axis=1).cumsum(axis=2)
    least: dict[tuple[int, int], np.ndarray] = {}  # by size: (N, positions along y, positions along x)
    cut: dict[tuple[int, int], np.ndarray] = {}  # index of the best of `_cuts`, from 1; 0: do not cut
    for h, w in product(range(1, height + 1), range(1, width + 1)):
        alone = np.multiply.outer(_outer_lengths(rows, h), _outer_lengths(columns, w)) + _CALL_PIXELS
        num_y, num_x = alone.shape
        work = np.repeat(alone[None].astype(np.int32), n, axis=0)
        chosen = np.zeros(work.shape, dtype=np.uint8)
        for number, halves in enumerate(_cuts(Box(0, 0, h, w)), start=1):
            both = sum(
                least[half.shape][:, half.y0 : half.y0 + num_y, half.x0 : half.x0 + num_x]
                for half in halves
            )
            better = both <= work  # at equal work, prefer the tighter rectangles
            np.copyto(work, both, where=better)
            chosen[better] = number
        inside = counts[:, h:, w:] - counts[:, :num_y, w:]
        inside -= counts[:, h:, :num_x] - counts[:, :num_y, :num_x]
        work[inside == 0] = 0
        least[h, w], cut[h, w] = work, chosen
    for tile in range(n):
        regions, boxes = [], [Box(0, 0, height, width)]
        while boxes:
            box = boxes.pop()
            if number := cut[box.shape][tile, box.y0, box.x0]:
                halves = list(_cuts(box))[number - 1]
                boxes += [half for half in halves if least[half.shape][tile, half.y0, half.x0]]
            else:
                regions.append(_region(box, rows, columns))
        yield regions


def _outer_lengths(edges: list[int], count: int) -> list[int]:
    """Return the computed pixels along an axis of ``count`` parts, for each place they can start at."""
    ranges = [_outer(start, end, edges[-1]) for start, end in zip(edges, edges[count:], strict=False)]
    return [end - start for start, end in ranges]


def _cuts(box: Box) -> Iterator[tuple[Box, Box]]:
    """Yield every way to cut a box of parts in two, always in the same order."""
    for y in range(box.y0 + 1, box.y1):
        yield Box(box.y0, box.x0, y, box.x1), Box(y, box.x0, box.y1, box.x1)
    for x in range(box.x0 + 1, box.x1):
        yield Box(box.y0, box.x0, box.y1, x), Box(box.y0, x, box.y1, box.x1)


def _region(parts: Box, rows: list[int], columns: list[int]) -> Region:
    """Turn a box of parts into pixels."""
    core = Box(rows[parts.y0], columns[parts.x0], rows[parts.y1], columns[parts.x1])
    (y0, y1), (x0, x1) = _outer(core.y0, core.y1, rows[-1]), _outer(core.x0, core.x1, columns[-1])
    return Region(core, Box(y0, x0, y1, x1))


def _outer(start: int, end: int, length: int) -> tuple[int, int]:
    """Add the margin to start..end - 1, clipped to a tile of that length."""
    return max(start - MARGIN, 0), min(end + MARGIN, length)
