"""Upscale all tiles of an image in memory, and merge them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import DTypeLike

from cabm.imaging.bicubic import REACH, surround, write_upscaled
from cabm.machine.threads import in_order, thread_count
from cabm.tables.table import EdgeToBitTable
from cabm.tiling.blending import blend_tiles
from cabm.tiling.contrast import LimitedTiles, limit_contrast
from cabm.tiling.edges import edges_of_image
from cabm.tiling.parts import Region, TileParts, paste
from cabm.tiling.plan import TilePlan, plan, split
from cabm.upscaling.order import batches, in_turns
from cabm.upscaling.runners import TileRunner


@dataclass(frozen=True)
class TiledResult:
    """An upscaled image and what was done with its tiles.

    Attributes:
        image: (H*scale, W*scale, 3) uint8.
        plan: the tiles; a single one if the image was not cut.
        scores: (N,) edge score of each tile.
        bits: (N,L) bits of each tile, zeros for tiles that bypassed the network; None for models without
            bits.
        parts: which parts of the tiles bypassed the network; None: no part did.
    """

    image: np.ndarray
    plan: TilePlan
    scores: np.ndarray
    bits: np.ndarray | None
    parts: TileParts | None = None

    @property
    def bypassed(self) -> np.ndarray:
        """(N,) share of each tile that bypassed the network, 0..1."""
        return np.zeros(len(self.plan)) if self.parts is None else self.parts.share

    @property
    def work(self) -> np.ndarray:
        """(N,) pixels that the network computed, margins included, relative to the tile: 0..1."""
        return np.ones(len(self.plan)) if self.parts is None else self.parts.work


class TileRun:
    """Upscales tiles while it is iterated, and yields the number of each tile when it is finished.

    Of each tile, only the regions that do not bypass the network are run. A runner that takes batches gets
    regions of one shape, sorted by bits. Other runners get the regions of several tiles at once, one per
    thread; tiles then finish in about their order, and later ones are already running.

    Args:
        runner: upscales regions of tiles.
        tiles: (N,3,h,w), uint8 or float32, in 0..255.
        bits: (N,L) int64 bits of each tile; None for models that take none.
        batch_size: largest batch, in tiles. A batch of regions may have as many pixels as these tiles.
        parts: which parts of the tiles bypass the network and stay bicubic; None: no part does.
        at_border: (N,) bool, whether a tile touches the image's border; None: each does. Batches do not mix
            both kinds if the runner ``splits_border``.
        dtype: of the result: uint8 (0..255) or uint16 (0..65535).
        surrounded: returns a tile with the pixels around it, (3,h+4,w+4), by its number; None: pixels are
            mirrored at the tile's border.
        contrast_limit: highest contrast of what enters the network, see `limit_contrast`; None: no limit.

    Attributes:
        upscaled: (N,3,h*scale,w*scale) of ``dtype`` in the order of ``tiles``; undefined for tiles that are
            not finished.
        used: (N,L) int64 bits that were used, or None; complete when all tiles are finished.
        seconds: (N,) time of each tile on its thread; tiles share the time of a batch by their pixels.
    """

    def __init__(
        self,
        runner: TileRunner,
        tiles: np.ndarray,
        bits: np.ndarray | None,
        *,
        batch_size: int,
        parts: TileParts | None = None,
        at_border: np.ndarray | None = None,
        dtype: DTypeLike = np.uint8,
        surrounded: Callable[[int], np.ndarray] | None = None,
        contrast_limit: float | None = None,
    ) -> None:
        n, channels, height, width = tiles.shape
        if parts is None:
            parts = TileParts.all_computed(n, height, width)
        # the channels of a pixel are side by side, as in images and in the results of networks
        shape = (n, height * runner.scale, width * runner.scale, channels)
        self.upscaled = np.empty(shape, dtype).transpose(0, 3, 1, 2)
        self.used: np.ndarray | None = None if bits is None else bits.copy()
        self.seconds = np.zeros(n)
        self._runner, self._tiles, self._bits = runner, tiles, bits
        self._parts, self._surrounded, self._contrast_limit = parts, surrounded, contrast_limit
        self._batch_pixels = batch_size * height * width
        splits = runner.splits_border and at_border is not None
        self._inside = ~at_border if splits else np.zeros(n, bool)

    def __iter__(self) -> Iterator[int]:
        return self._in_batches() if self._runner.in_batches else self._one_by_one()

    def complete(self) -> TileRun:
        """Upscale all tiles; return self."""
        for _ in self:
            pass
        return self

    def _one_by_one(self) -> Iterator[int]:
        """Upscale several tiles at once, each on its own thread."""
        order, share = in_turns(self._parts.work, thread_count()), self._parts.share

        def upscale(index: int) -> int:
            number, start = order[index], time.perf_counter()
            if share[number]:
                self._write_bicubic(number)
            bits = None if self._bits is None else self._bits[number : number + 1]
            limited = self._limited(number) if self._parts.regions[number] else None
            pixels = self._tiles[number : number + 1] if limited is None else limited.pixels
            for region in self._parts.regions[number]:
                y0, x0, y1, x1 = region.outer
                values, _ = self._runner(pixels[..., y0:y1, x0:x1], bits)
                self._write(number, region, _restored(values, limited)[0])
            self.seconds[number] = time.perf_counter() - start
            return number

        return in_order(upscale, len(order))

    def _in_batches(self) -> Iterator[int]:
        """Upscale regions of many tiles together."""
        open_regions = [len(regions) for regions in self._parts.regions]
        for number in np.flatnonzero(self._parts.share).tolist():
            start = time.perf_counter()
            self._write_bicubic(number)
            self.seconds[number] = time.perf_counter() - start
            if not open_regions[number]:
                yield number
        for batch in batches(self._parts.regions, self._bits, self._inside, self._batch_pixels):
            start = time.perf_counter()
            for (number, region), values in zip(batch, self._upscaled(batch), strict=True):
                self._write(number, region, values)
            each = (time.perf_counter() - start) / len(batch)  # the regions of a batch have one shape
            for number, _ in batch:
                self.seconds[number] += each
                open_regions[number] -= 1
                if not open_regions[number]:
                    yield number

    def _upscaled(self, batch: list[tuple[int, Region]]) -> list[np.ndarray]:
        """Upscale the regions of a batch: n of (3,h*scale,w*scale) in 0..255."""
        inside = bool(self._inside[batch[0][0]])
        numbers = [number for number, _ in batch]
        pieces, limits = [], []
        for number, (_, box) in batch:
            limits.append(self._limited(number))
            tile = self._tiles[number] if limits[-1] is None else limits[-1].pixels[0]
            pieces.append(tile[:, box.y0 : box.y1, box.x0 : box.x1])
        bits = None if self._bits is None else self._bits[numbers]
        results, chosen = self._runner(_stacked(pieces), bits, inside=inside)
        if chosen is not None:
            if self.used is None:
                self.used = np.zeros((len(self._tiles), chosen.shape[1]), np.int64)
            self.used[numbers] = chosen
        pairs = zip(results, limits, strict=True)
        return [_restored(values[None], limited)[0] for values, limited in pairs]

    def _limited(self, number: int) -> LimitedTiles | None:
        """Return a tile with less contrast; None if it is within the limit and enters as it is."""
        if self._contrast_limit is None:
            return None
        tile = self._tiles[number : number + 1].astype(np.float32, copy=False)
        limited = limit_contrast(tile, self._contrast_limit)
        return limited if limited.factor.item() > 1 else None

    def _write_bicubic(self, number: int) -> None:
        around = surround(self._tiles[number]) if self._surrounded is None else self._surrounded(number)
        write_upscaled(self.upscaled[number], around, self._runner.scale)

    def _write(self, number: int, region: Region, values: np.ndarray) -> None:
        whole = _rounded(values, self.upscaled.dtype)
        paste(self.upscaled[number], whole, region, self._runner.scale)


def _stacked(pieces: list[np.ndarray]) -> np.ndarray:
    """Stack regions; as floats if one of them is, as tiles of limited contrast are."""
    same = all(piece.dtype == pieces[0].dtype for piece in pieces)
    return np.stack(pieces if same else [piece.astype(np.float32, copy=False) for piece in pieces])


def _restored(values: np.ndarray, limited: LimitedTiles | None) -> np.ndarray:
    """Return results (n,3,H,W) of tiles of limited contrast with the contrast that was taken from them."""
    return values if limited is None else limited.restore(values.astype(np.float32, copy=False))


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return values of 0..255 as whole numbers in the range of a type. Overwrites the values."""
    if values.dtype == np.uint8:
        assert dtype == np.uint8
        return values
    peak = np.iinfo(dtype).max
    if peak != 255:
        values *= np.float32(peak / 255)
    np.rint(values, out=values)
    return np.clip(values, 0, peak, out=values).astype(dtype)


def touches_border(tile_plan: TilePlan) -> np.ndarray:
    """Return whether each tile has a side on the image's border: (N,) bool."""
    y0, x0, y1, x1 = tile_plan.boxes.T
    return (y0 == 0) | (x0 == 0) | (y1 >= tile_plan.height) | (x1 >= tile_plan.width)


def super_resolve(
    runner: TileRunner,
    image: np.ndarray,
    *,
    table: EdgeToBitTable | None = None,
    tile: int | None = 96,
    stride: int = 94,
    size_multiple: int = 1,
    batch_size: int = 8,
) -> TiledResult:
    """Upscale an image in memory, as evaluation and training do.

    `cabm.upscaling.streaming.upscale` gives the same pixels for images of any size.

    Args:
        runner: upscales the tiles.
        image: (H,W,3) uint8.
        table: chooses the bits of each tile by its edge score, for CABM models.
        tile: side of a tile in pixels; None: the whole image is one tile.
        stride: distance of neighbouring tiles in pixels.
        size_multiple: the backbone takes tiles whose sides are multiples of this.
        batch_size: largest number of tiles in a batch.
    """
    height, width = image.shape[:2]
    if tile is None:
        tile = stride = max(height, width) + -max(height, width) % size_multiple
    tile_plan = plan(height, width, tile, stride, size_multiple=size_multiple)
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1))
    edges = edges_of_image(pixels, tile_plan, None if table is None else table.part)
    bits, parts = (None, None) if table is None else table.assign(edges, tile_plan)
    run = TileRun(
        runner,
        split(pixels, tile_plan),
        bits,
        batch_size=batch_size,
        parts=parts,
        at_border=touches_border(tile_plan),
        surrounded=partial(surrounded_tile, surround(pixels), tile_plan),
        contrast_limit=None if table is None else table.contrast_limit,
    ).complete()
    merged = blend_tiles(run.upscaled, tile_plan, runner.scale)
    return TiledResult(merged, tile_plan, edges.scores, run.used, parts)


def surrounded_tile(surrounded: np.ndarray, tile_plan: TilePlan, number: int) -> np.ndarray:
    """Cut a tile with the pixels around it, (C,h+4,w+4), out of an image with pixels around it.

    Args:
        surrounded: (C,H+4,W+4): the image with `REACH` pixels around it.
        tile_plan: the tiles of the image.
        number: the tile's number.
    """
    y0, x0, y1, x1 = tile_plan.boxes[number].tolist()
    tile = surrounded[:, y0 : y1 + 2 * REACH, x0 : x1 + 2 * REACH]
    missing = (0, y1 + 2 * REACH - y0 - tile.shape[1], x1 + 2 * REACH - x0 - tile.shape[2])
    # tiles extend beyond an image that is smaller than the size multiple; the excess is cut off later
    return np.pad(tile, [(0, pixels) for pixels in missing]) if any(missing) else tile
