"""Cut an image into overlapping tiles of one shape.

Lengths are pixels of the low-resolution input unless a name says otherwise.

The tiles form a grid. The last row and the last column are shifted inwards, so that every tile has the
same shape and a batch of tiles is one array. Each pixel belongs to the tile with the nearest centre,
which splits every overlap in the middle: the pixel is then as far as possible from its tile's border,
where the network sees least of its surroundings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cabm.errors import InputError


@dataclass(frozen=True)
class TilePlan:
    """The positions of an image's tiles; made by :func:`plan`.

    Attributes:
        height, width: size of the image.
        tile, stride: requested side of a tile and distance between neighbours.
        tile_height, tile_width: shape of every tile; below ``tile`` only if the image is smaller.
        row_starts, column_starts: first image row (column) of each row (column) of tiles, ascending.
    """

    height: int
    width: int
    tile: int
    stride: int
    tile_height: int
    tile_width: int
    row_starts: tuple[int, ...]
    column_starts: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Number of rows of tiles."""
        return len(self.row_starts)

    @property
    def num_columns(self) -> int:
        """Number of columns of tiles."""
        return len(self.column_starts)

    @property
    def num_tiles(self) -> int:
        """Number of tiles; they are numbered row by row."""
        return self.num_rows * self.num_columns

    def __len__(self) -> int:
        return self.num_tiles

    @property
    def padded_height(self) -> int:
        """Image height after reflection padding to ``size_multiple``; see :func:`split`."""
        return self.row_starts[-1] + self.tile_height

    @property
    def padded_width(self) -> int:
        """Image width after reflection padding to ``size_multiple``; see :func:`split`."""
        return self.column_starts[-1] + self.tile_width

    @cached_property
    def boxes(self) -> np.ndarray:
        """The tiles' rectangles in the input: (N, 4) int64 of y0, x0, y1, x1, ends excluded."""
        y, x = self._grid(np.array(self.row_starts), np.array(self.column_starts))
        return _frozen(np.stack([y, x, y + self.tile_height, x + self.tile_width], axis=1))

    def owned(self, scale: int) -> np.ndarray:
        """The output pixels that belong to each tile: (N, 4) int64 of y0, x0, y1, x1, ends excluded.

        The rectangles cover the (height * scale, width * scale) output without overlap.
        """
        rows = _cuts(self.row_starts, self.tile_height, self.height, scale)
        columns = _cuts(self.column_starts, self.tile_width, self.width, scale)
        y0, x0 = self._grid(rows[:-1], columns[:-1])
        y1, x1 = self._grid(rows[1:], columns[1:])
        return np.stack([y0, x0, y1, x1], axis=1)

    @cached_property
    def owned_areas(self) -> np.ndarray:
        """Input pixels that belong to each tile: (N,) float64 that add up to height * width."""
        y0, x0, y1, x1 = self.owned(2).T  # cuts fall on half pixels, which are whole at scale 2
        return _frozen((y1 - y0) * (x1 - x0) / 4.0)

    def _grid(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, x = np.meshgrid(rows, columns, indexing="ij")
        return y.ravel(), x.ravel()


@dataclass(frozen=True)
class Band:
    """One row of tiles.

    Attributes:
        tiles: the numbers of its tiles in the whole plan.
        image_rows: the input rows that its tiles read.
        plan: the plan of these rows as an image of their own, for :func:`split`.
    """

    tiles: slice
    image_rows: slice
    plan: TilePlan


def plan(height: int, width: int, tile: int, stride: int, *, size_multiple: int = 1) -> TilePlan:
    """Plan tiles of ``tile`` x ``tile`` pixels, ``stride`` pixels apart.

    Args:
        height, width: image size, at least 1.
        tile: side of a tile. Along an axis where the image is smaller, tiles take the image's size.
        stride: distance between neighbouring tiles, 1..tile; tile - stride pixels overlap.
        size_multiple: the network needs sides that are multiples of this. ``tile`` must be a multiple;
            an image smaller than a tile is padded to one by reflection in :func:`split`.

    Raises:
        InputError: a size below 1, a stride outside 1..tile, or a tile that is not a multiple.
    """
    if height < 1 or width < 1:
        raise InputError(f"image of {height} x {width} pixels: both sides must be at least 1")
    if tile < 1 or size_multiple < 1:
        raise InputError(f"tile {tile}, size multiple {size_multiple}: both must be at least 1")
    if not 1 <= stride <= tile:
        raise InputError(f"stride {stride} with tiles of {tile}: choose a stride from 1 to {tile}")
    if tile % size_multiple:
        raise InputError(f"tile {tile}: this model needs a multiple of {size_multiple}")
    tile_height, row_starts = _starts(height, tile, stride, size_multiple)
    tile_width, column_starts = _starts(width, tile, stride, size_multiple)
    return TilePlan(height, width, tile, stride, tile_height, tile_width, row_starts, column_starts)


def split(image: np.ndarray, tile_plan: TilePlan) -> np.ndarray:
    """Copy the tiles of an image into one batch.

    Args:
        image: (C, H, W), any type.
        tile_plan: a plan for that size.

    Returns:
        (N, C, tile_height, tile_width), row by row.
    """
    channels = image.shape[0]
    assert image.shape[1:] == (tile_plan.height, tile_plan.width), (image.shape, tile_plan)
    image = _pad(image, tile_plan)
    shape = (tile_plan.num_tiles, channels, tile_plan.tile_height, tile_plan.tile_width)
    tiles = np.empty(shape, image.dtype)
    for tile, (y0, x0, y1, x1) in zip(tiles, tile_plan.boxes.tolist(), strict=True):
        tile[...] = image[:, y0:y1, x0:x1]
    return tiles


def bands(tile_plan: TilePlan) -> Iterator[Band]:
    """Yield the rows of tiles from top to bottom, so that memory holds one of them at a time."""
    columns = tile_plan.num_columns
    for row, start in enumerate(tile_plan.row_starts):
        end = min(start + tile_plan.tile_height, tile_plan.height)
        yield Band(
            tiles=slice(row * columns, (row + 1) * columns),
            image_rows=slice(start, end),
            plan=replace(tile_plan, height=end - start, row_starts=(0,)),
        )


def reflect_101(start: int, stop: int, length: int) -> np.ndarray:
    """Mirror positions start..stop - 1 into 0..length - 1 about the end pixels.

    The end pixel is not repeated: -1 becomes 1. This is OpenCV's default border, here at any distance.

    Returns:
        (stop - start,) int64; zeros for a length of one.
    """
    period = max(2 * (length - 1), 1)
    positions = np.arange(start, stop) % period
    return np.minimum(positions, period - positions) if length > 1 else np.zeros_like(positions)


def _starts(length: int, tile: int, stride: int, multiple: int) -> tuple[int, tuple[int, ...]]:
    """Return the side and the starts of the tiles along one axis."""
    if length <= tile:
        return -(-length // multiple) * multiple, (0,)
    last = length - tile
    return tile, (*range(0, last, stride), last)


def _cuts(starts: tuple[int, ...], tile: int, length: int, scale: int) -> np.ndarray:
    """Return the limits of the tiles' output ranges along one axis: (len(starts) + 1,) int64, ascending.

    Two neighbours meet halfway between their centres. At odd scales that can be the middle of an output
    pixel, which then goes to the first tile.
    """
    positions = np.asarray(starts, dtype=np.int64)
    inner = (scale * (positions[:-1] + positions[1:] + tile) + 1) // 2
    return np.concatenate([[0], inner, [length * scale]])


def _pad(image: np.ndarray, tile_plan: TilePlan) -> np.ndarray:
    """Extend the image by reflection at its bottom and right to the plan's padded size."""
    for axis, padded in ((1, tile_plan.padded_height), (2, tile_plan.padded_width)):
        if padded > image.shape[axis]:
            image = image.take(reflect_101(0, padded, image.shape[axis]), axis)
    return image


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
