"""Cut an image into overlapping tiles of one shape, and put upscaled tiles together again.

Everything here is a pure function of a :class:`TilePlan`. Lengths without a prefix are pixels of the
low-resolution input; ``scale`` times as many make the output.

The tiles form a grid. The last row and the last column are shifted inwards, so that every tile has the
same shape and a batch of tiles is one tensor. Where tiles overlap, an output pixel is taken from the
tile whose centre is nearest, which cuts every overlap in its middle: the pixel taken is the one
furthest from a tile's border, where a network has seen the least of its surroundings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cabm.errors import InputError


@dataclass(frozen=True)
class TilePlan:
    """Where the tiles of one image lie; made by :func:`plan`.

    Attributes:
        height, width: size of the image.
        tile, stride: what was asked for.
        tile_height, tile_width: shape of every tile; smaller than ``tile`` only where the image is.
        row_starts, column_starts: first image row (column) of each row (column) of tiles, ascending.
        padded_height, padded_width: size of the image after the reflection padding that
            ``size_multiple`` asks for; equal to the image's size wherever it is not smaller than a tile.
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
        """Rows of tiles."""
        return len(self.row_starts)

    @property
    def num_columns(self) -> int:
        """Columns of tiles."""
        return len(self.column_starts)

    @property
    def num_tiles(self) -> int:
        """Tiles in the plan; they are numbered row by row."""
        return self.num_rows * self.num_columns

    def __len__(self) -> int:
        return self.num_tiles

    @property
    def padded_height(self) -> int:
        """Rows the tiles cover."""
        return self.row_starts[-1] + self.tile_height

    @property
    def padded_width(self) -> int:
        """Columns the tiles cover."""
        return self.column_starts[-1] + self.tile_width

    @cached_property
    def boxes(self) -> np.ndarray:
        """Input rectangles of the tiles: (N, 4) int64 of y0, x0, y1, x1 (ends excluded)."""
        y, x = self._grid(np.array(self.row_starts), np.array(self.column_starts))
        return _frozen(np.stack([y, x, y + self.tile_height, x + self.tile_width], axis=1))

    def owned(self, scale: int) -> np.ndarray:
        """Output rectangles that each tile alone fills: (N, 4) int64 of y0, x0, y1, x1.

        They cover the (height * scale, width * scale) output without overlap.
        """
        rows = _cuts(self.row_starts, self.tile_height, self.height, scale)
        columns = _cuts(self.column_starts, self.tile_width, self.width, scale)
        y0, x0 = self._grid(rows[:-1], columns[:-1])
        y1, x1 = self._grid(rows[1:], columns[1:])
        return np.stack([y0, x0, y1, x1], axis=1)

    @cached_property
    def owned_areas(self) -> np.ndarray:
        """Share of the image that each tile owns, in input pixels: (N,) float64, sum height * width."""
        y0, x0, y1, x1 = self.owned(2).T  # cuts lie on half pixels: scale 2 has them exactly
        return _frozen((y1 - y0) * (x1 - x0) / 4.0)

    def _grid(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, x = np.meshgrid(rows, columns, indexing="ij")
        return y.ravel(), x.ravel()


@dataclass(frozen=True)
class Band:
    """One row of tiles of a plan: what it reads and what it completes.

    Attributes:
        tiles: the numbers of its tiles in the whole plan.
        image_rows: input rows that its tiles read: the strip.
        output_rows: output rows that it completes, out of height * scale.
        strip_rows: the same rows counted from the first output row of the strip.
        plan: the plan of the strip as an image of its own, for :func:`split` and :func:`merge`.
    """

    tiles: slice
    image_rows: slice
    output_rows: slice
    strip_rows: slice
    plan: TilePlan


def plan(height: int, width: int, tile: int, stride: int, *, size_multiple: int = 1) -> TilePlan:
    """Lay tiles of ``tile`` x ``tile`` pixels over an image, ``stride`` pixels apart.

    Args:
        height, width: image size in pixels, at least 1.
        tile: side of a tile; an image smaller than that gets tiles of its own size.
        stride: distance of neighbouring tiles, 1..tile; tile - stride pixels overlap.
        size_multiple: the network needs sides that are multiples of this. ``tile`` must be one;
            an image smaller than a tile is padded to one by reflection (:func:`split` does it).

    Raises:
        InputError: a size below 1, a stride outside 1..tile, a tile that is no multiple.
    """
    if height < 1 or width < 1:
        raise InputError(f"image of {height} x {width} pixels: it needs at least one")
    if tile < 1 or size_multiple < 1:
        raise InputError(f"tile {tile}, size multiple {size_multiple}: both must be at least 1")
    if not 1 <= stride <= tile:
        raise InputError(f"stride {stride} of tiles of {tile}: choose one from 1 to {tile}")
    if tile % size_multiple:
        raise InputError(f"tile {tile}: the model needs a multiple of {size_multiple}")
    tile_height, row_starts = _starts(height, tile, stride, size_multiple)
    tile_width, column_starts = _starts(width, tile, stride, size_multiple)
    return TilePlan(height, width, tile, stride, tile_height, tile_width, row_starts, column_starts)


def split(image: Tensor, tile_plan: TilePlan) -> Tensor:
    """Copy the tiles of an image into one batch.

    Args:
        image: (C, H, W), any dtype and device.
        tile_plan: the plan of that size.

    Returns:
        (N, C, tile_height, tile_width), row by row.
    """
    channels = image.shape[0]
    assert image.shape[1:] == (tile_plan.height, tile_plan.width), (image.shape, tile_plan)
    image = _pad(image, tile_plan)
    shape = (tile_plan.num_tiles, channels, tile_plan.tile_height, tile_plan.tile_width)
    tiles = image.new_empty(shape)
    for tile, (y0, x0, y1, x1) in zip(tiles, tile_plan.boxes.tolist(), strict=True):
        tile.copy_(image[:, y0:y1, x0:x1])
    return tiles


def merge(tiles: Tensor, tile_plan: TilePlan, scale: int) -> Tensor:
    """Put upscaled tiles together; every pixel comes from the tile with the nearest centre.

    Args:
        tiles: (N, C, tile_height * scale, tile_width * scale) in the plan's order.
        tile_plan: the plan the tiles were split by.
        scale: output pixels per input pixel.

    Returns:
        (C, height * scale, width * scale).
    """
    shape = (tiles.shape[1], tile_plan.height * scale, tile_plan.width * scale)
    image = tiles.new_empty(shape)
    place(image, tiles, range(tile_plan.num_tiles), tile_plan, scale)
    return image


def place(image: Tensor, tiles: Tensor, numbers: Iterable[int], tile_plan: TilePlan, scale: int) -> None:
    """Write some upscaled tiles into an output image, each into the rectangle it owns.

    For tiles that come in another order than the plan's, such as grouped by bits.

    Args:
        image: (C, height * scale, width * scale), written in place.
        tiles: (n, C, tile_height * scale, tile_width * scale).
        numbers: the n numbers of these tiles in the plan.
        tile_plan: the plan the tiles were split by.
        scale: output pixels per input pixel.
    """
    assert tiles.shape[2:] == (tile_plan.tile_height * scale, tile_plan.tile_width * scale)
    boxes, owned = tile_plan.boxes, tile_plan.owned(scale)
    for tile, number in zip(tiles, numbers, strict=True):
        y0, x0, y1, x1 = owned[number].tolist()
        top, left = (boxes[number, :2] * scale).tolist()
        image[:, y0:y1, x0:x1] = tile[:, y0 - top : y1 - top, x0 - left : x1 - left]


def bands(tile_plan: TilePlan, scale: int) -> Iterator[Band]:
    """Yield the rows of tiles from top to bottom, for work in memory bounded by one of them.

    ``split(image[:, band.image_rows], band.plan)`` gives the band's tiles, and
    ``merge(upscaled, band.plan, scale)[:, band.strip_rows]`` the output rows it completes.
    """
    cuts = _cuts(tile_plan.row_starts, tile_plan.tile_height, tile_plan.height, scale)
    columns = tile_plan.num_columns
    for row, start in enumerate(tile_plan.row_starts):
        end = min(start + tile_plan.tile_height, tile_plan.height)
        first, last = int(cuts[row]), int(cuts[row + 1])
        yield Band(
            tiles=slice(row * columns, (row + 1) * columns),
            image_rows=slice(start, end),
            output_rows=slice(first, last),
            strip_rows=slice(first - start * scale, last - start * scale),
            plan=TilePlan(
                height=end - start,
                width=tile_plan.width,
                tile=tile_plan.tile,
                stride=tile_plan.stride,
                tile_height=tile_plan.tile_height,
                tile_width=tile_plan.tile_width,
                row_starts=(0,),
                column_starts=tile_plan.column_starts,
            ),
        )


def reflect_101(start: int, stop: int, length: int) -> np.ndarray:
    """Positions start..stop - 1 mirrored into 0..length - 1 about the end pixels, as int64.

    The end pixel is not repeated (``-1`` becomes ``1``); a length of one gives zeros. This is OpenCV's
    default border, at any distance outside.
    """
    period = max(2 * (length - 1), 1)
    positions = np.arange(start, stop) % period
    return np.minimum(positions, period - positions) if length > 1 else np.zeros_like(positions)


def _starts(length: int, tile: int, stride: int, multiple: int) -> tuple[int, tuple[int, ...]]:
    """Side of the tiles along one axis and where they start."""
    if length <= tile:
        return -(-length // multiple) * multiple, (0,)
    last = length - tile
    return tile, (*range(0, last, stride), last)


def _cuts(starts: tuple[int, ...], tile: int, length: int, scale: int) -> np.ndarray:
    """Ends of the owned output ranges along one axis: (len(starts) + 1,) int64 from 0 up.

    Two neighbours meet in the middle of their centres. With an odd scale that may be the middle of an
    output pixel, which is equally far from both and goes to the first.
    """
    positions = np.asarray(starts, dtype=np.int64)
    inner = (scale * (positions[:-1] + positions[1:] + tile) + 1) // 2
    return np.concatenate([[0], inner, [length * scale]])


def _pad(image: Tensor, tile_plan: TilePlan) -> Tensor:
    """Reflect the image at its lower and right ends up to the plan's padded size."""
    for axis, (size, padded) in enumerate(
        [
            (tile_plan.height, tile_plan.padded_height),
            (tile_plan.width, tile_plan.padded_width),
        ],
        start=1,
    ):
        if padded > size:
            index = torch.from_numpy(reflect_101(0, padded, size)).to(image.device)
            image = image.index_select(axis, index)
    return image


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
