"""Parts of tiles that do not enter the network, and the rectangles that do.

A tile of 96 pixels is seldom smooth all over, but often in parts. Each part is bypassed by itself: it
keeps the bicubic upscaling of the tile. The other parts are covered by rectangles of least work, which
the network computes with a margin, and which fade into the bicubic pixels around them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np

MARGIN = 3
"""Input pixels around a rectangle that are computed with it at least, inside its tile.

The outermost is not used (there the network knows least of what it shows), across the others the rectangle
fades into what is there.
"""

# time of one more rectangle, whatever its size, in pixels: 400 where the integer engine goes layer by
# layer; where it does not, an image takes as long with any number from 50 to 400
_CALL_PIXELS = 400
_MOST_PARTS = 16  # along a side, for which the best rectangles are searched
_TILES_TOGETHER = 512  # of which the search keeps some kilobytes each


class Box(NamedTuple):
    """Rows y0..y1 - 1 and columns x0..x1 - 1."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def area(self) -> int:
        """How many pixels."""
        return (self.y1 - self.y0) * (self.x1 - self.x0)

    def scaled(self, factor: int) -> Box:
        """Return the same box in an image upscaled by that factor."""
        return Box(*(factor * value for value in self))


class Region(NamedTuple):
    """A rectangle of a tile that the network computes.

    Attributes:
        core: the parts that it is for.
        outer: with its margin, as far as the tile reaches: what is computed.
    """

    core: Box
    outer: Box


@dataclass(frozen=True, eq=False)
class TileParts:
    """Which parts of N tiles of one shape do not enter the network.

    Attributes:
        side: of a part in input pixels; parts at a tile's lower and right ends may be smaller.
        height, width: of the tiles.
        bypassed: (N, R, C) bool; R and C: how many parts it takes to cover a tile.
    """

    side: int
    height: int
    width: int
    bypassed: np.ndarray

    def __post_init__(self) -> None:
        grid = (-(-self.height // self.side), -(-self.width // self.side))
        assert self.bypassed.shape[1:] == grid, (self.bypassed.shape, grid)

    @classmethod
    def of_tiles(cls, height: int, width: int, bypassed: np.ndarray) -> TileParts:
        """Return the parts of tiles of which each is computed or bypassed (N,) as a whole."""
        return cls(max(height, width), height, width, np.asarray(bypassed, dtype=bool)[:, None, None])

    def __len__(self) -> int:
        return len(self.bypassed)

    def __getitem__(self, numbers: slice) -> TileParts:
        some = TileParts(self.side, self.height, self.width, self.bypassed[numbers])
        vars(some)["regions"] = self.regions[numbers]  # worked out once
        return some

    @property
    def entered(self) -> np.ndarray:
        """(N,) which tiles have parts that enter the network."""
        return ~self.bypassed.all(axis=(1, 2))

    @property
    def share(self) -> np.ndarray:
        """(N,) share 0..1 of each tile's pixels that are not the network's.

        It is less than that of the bypassed parts, where a rectangle goes over some.
        """
        pixels = [sum(region.core.area for region in regions) for regions in self.regions]
        return 1 - np.array(pixels, dtype=np.float64) / (self.height * self.width)

    @property
    def work(self) -> np.ndarray:
        """(N,) share 0..1 of each tile's pixels that the network computed, margins and all."""
        pixels = [sum(region.outer.area for region in regions) for regions in self.regions]
        return np.array(pixels, dtype=np.float64) / (self.height * self.width)

    @property
    def left_out(self) -> np.ndarray:
        """(N, R, C) bool: the parts that no rectangle goes over."""
        left = self.bypassed.copy()
        for tile, regions in zip(left, self.regions, strict=True):
            for region in regions:
                y0, x0, y1, x1 = region.core
                tile[y0 // self.side : -(-y1 // self.side), x0 // self.side : -(-x1 // self.side)] = False
        return left

    @property
    def boxes_left_out(self) -> list[list[Box]]:
        """Of each tile, the pixels of the parts that no rectangle goes over."""
        rows, columns = _edges(self.height, self.side), _edges(self.width, self.side)
        return [
            [Box(rows[y], columns[x], rows[y + 1], columns[x + 1]) for y, x in np.argwhere(tile).tolist()]
            for tile in self.left_out
        ]

    @cached_property
    def regions(self) -> list[list[Region]]:
        """Of each tile, the rectangles that the network computes."""
        rows, columns = _edges(self.height, self.side), _edges(self.width, self.side)
        tile = Box(0, 0, self.height, self.width)
        whole = [[Region(tile, tile)] if entered else [] for entered in self.entered]
        mixed = np.flatnonzero(self.entered & self.bypassed.any(axis=(1, 2)))
        if max(self.bypassed.shape[1:]) > _MOST_PARTS:
            return whole
        for start in range(0, len(mixed), _TILES_TOGETHER):
            numbers = mixed[start : start + _TILES_TOGETHER]
            for number, regions in zip(
                numbers, _cover(~self.bypassed[numbers], rows, columns), strict=True
            ):
                if sum(_work(region.outer) for region in regions) < _work(tile):
                    whole[number] = regions
        return whole


def paste(tile: np.ndarray, piece: np.ndarray, region: Region, scale: int) -> None:
    """Lay an upscaled region into its upscaled tile, in place.

    Args:
        tile: (C, H * scale, W * scale) of whole numbers.
        piece: (C, h * scale, w * scale) of ``region.outer``, of the same type.
        region: where it lies.
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
    """Weight of a region along one axis: (end - start,) float32, 1 in its core."""
    weights = np.ones(end - start, dtype=np.float32)
    for length, ramp in ((core_start - start, weights), (end - core_end, weights[::-1])):
        fade = min(length, (MARGIN - 1) * scale)
        ramp[: length - fade] = 0
        ramp[length - fade : length] = (np.arange(fade, dtype=np.float32) + 0.5) / max(fade, 1)
    return weights


def _edges(length: int, side: int) -> list[int]:
    return [*range(0, length, side), length]


def _work(outer: Box) -> int:
    return outer.area + _CALL_PIXELS


def _cover(computed: np.ndarray, rows: list[int], columns: list[int]) -> Iterator[list[Region]]:
    """Yield for each tile the rectangles of least work over its computed (N, R, C) parts.

    A box of parts is either one rectangle, or cut in two along a line between parts, whichever is less
    work; one without computed parts is none. Worked out for all boxes of one size in all tiles at once,
    small ones first.
    """
    n, height, width = computed.shape
    counts = np.zeros((n, height + 1, width + 1), dtype=np.int64)
    counts[:, 1:, 1:] = computed.cumsum(axis=1).cumsum(axis=2)
    least: dict[tuple[int, int], np.ndarray] = {}  # by size: (N, places along y, places along x)
    cut: dict[tuple[int, int], np.ndarray] = {}  # number of the best of `_cuts`, from 1; 0: none
    for h, w in product(range(1, height + 1), range(1, width + 1)):
        ys, xs = range(height - h + 1), range(width - w + 1)
        outer_h = [end - start for start, end in (_side(rows[y], rows[y + h], rows[-1]) for y in ys)]
        outer_w = [
            end - start for start, end in (_side(columns[x], columns[x + w], columns[-1]) for x in xs)
        ]
        alone = np.multiply.outer(outer_h, outer_w) + _CALL_PIXELS
        work = np.repeat(alone[None].astype(np.int32), n, axis=0)
        chosen = np.zeros(work.shape, dtype=np.uint8)
        for number, halves in enumerate(_cuts(Box(0, 0, h, w)), start=1):
            first, second = (
                least[half.shape][:, half.y0 : half.y0 + len(ys), half.x0 : half.x0 + len(xs)]
                for half in halves
            )
            both = first + second
            better = both <= work  # of equal ones the tightest
            np.copyto(work, both, where=better)
            chosen[better] = number
        inside = counts[:, h:, w:] - counts[:, : len(ys), w:]
        inside -= counts[:, h:, : len(xs)] - counts[:, : len(ys), : len(xs)]
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


def _cuts(box: Box) -> Iterator[tuple[Box, Box]]:
    for y in range(box.y0 + 1, box.y1):
        yield Box(box.y0, box.x0, y, box.x1), Box(y, box.x0, box.y1, box.x1)
    for x in range(box.x0 + 1, box.x1):
        yield Box(box.y0, box.x0, box.y1, x), Box(box.y0, x, box.y1, box.x1)


def _region(parts: Box, rows: list[int], columns: list[int]) -> Region:
    core = Box(rows[parts.y0], columns[parts.x0], rows[parts.y1], columns[parts.x1])
    (y0, y1), (x0, x1) = _side(core.y0, core.y1, rows[-1]), _side(core.x0, core.x1, columns[-1])
    return Region(core, Box(y0, x0, y1, x1))


def _side(start: int, end: int, length: int) -> tuple[int, int]:
    """Pixels of a tile of that length along one axis that are computed for start..end - 1."""
    return max(start - MARGIN, 0), min(end + MARGIN, length)
