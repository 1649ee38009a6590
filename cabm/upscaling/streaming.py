"""Upscale an image of any size: only a few rows of tiles are in memory at a time.

The image is read twice. The first pass scores every tile and looks up its bits. Since all bits are known
before the network runs, the second pass can group the tiles in memory by their bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import numpy as np

from cabm.imaging.bicubic import REACH
from cabm.imaging.pixels import has_alpha, image_output, joined_alpha
from cabm.imaging.raster import Raster, alpha_raster
from cabm.tables.table import EdgeToBitTable
from cabm.tiling.blending import TileJoiner
from cabm.tiling.edges import TileEdges, edges_of_image
from cabm.tiling.plan import Band, TilePlan, bands, split
from cabm.upscaling.runners import TileRunner
from cabm.upscaling.tiles import TileRun, surrounded_tile, touches_border
from cabm.upscaling.trace import Progress, Trace
from cabm.upscaling.window import RowWindow

FLIGHT_BYTES = 96 << 20
"""Size of the upscaled tiles in memory; at least one row of tiles."""


def upscale(
    raster: Raster,
    runner: TileRunner,
    tile_plan: TilePlan,
    *,
    table: EdgeToBitTable | None = None,
    alpha: str = "bicubic",
    batch_size: int = 8,
    progress: Progress | None = None,
    trace: Trace | None = None,
) -> Iterator[np.ndarray]:
    """Yield the upscaled image from top to bottom.

    Args:
        raster: the image.
        runner: upscales the tiles.
        tile_plan: the tiles of the image.
        table: chooses the bits of each tile by its edge score, for CABM models.
        alpha: what upscales an alpha channel: ``bicubic``, or ``network``, as a gray image of its own.
        batch_size: largest number of tiles in a batch.
        progress: called with the number of tiles that were finished.
        trace: filled in; complete when the last rows have been yielded.

    Yields:
        (n, W * scale, C) in the channels and type of the raster, height * scale rows together.
    """
    trace = Trace() if trace is None else trace
    if table is not None:
        edges = edges_of_raster(raster, tile_plan, table.part, trace, progress)
        with trace.clock("look up"):
            trace.bits, trace.parts = table.assign(edges, tile_plan)
        trace.scores = edges.scores
    window, joiner = RowWindow(raster, trace), TileJoiner(tile_plan, runner.scale)
    channel = _upscaled_alpha(raster, runner, tile_plan, table, batch_size) if alpha == "network" else None
    at_border, first_row, chosen, seconds = touches_border(tile_plan), 0, [], []
    for flight in _flights(tile_plan, window, runner.scale, raster.dtype.itemsize):
        run = _run(runner, flight, at_border, trace, batch_size, raster.dtype, table)
        for row_of_tiles in _rows_of_tiles(run, tile_plan.num_columns, trace, progress):
            with trace.clock("merge"):
                rows = joiner.add(row_of_tiles)
                transparency = window.alpha(first_row, len(rows), runner.scale)
            if channel is not None:
                with trace.clock("alpha"):
                    transparency = joined_alpha(transparency, next(channel))
            with trace.clock("merge"):
                rows = image_output(rows, raster.channels, transparency)
            first_row += len(rows)
            yield rows
            del rows, row_of_tiles
        chosen.append(run.used)
        seconds.append(run.seconds)
        del run  # the largest object here: the next flight needs its memory
        window.release(flight.bands[-1].image_rows.start - 2 * RowWindow.MARGIN)
    if table is None and chosen[0] is not None:
        trace.bits = np.concatenate(chosen)
    trace.tile_seconds = np.concatenate(seconds)


def _upscaled_alpha(
    raster: Raster, runner: TileRunner, tile_plan: TilePlan, table: EdgeToBitTable | None, batch_size: int
) -> Iterator[np.ndarray] | None:
    """Yield the network's alpha channel, (n, W * scale), in the rows of `upscale`; None if it is flat."""
    if not has_alpha(raster.channels):
        return None
    channel = alpha_raster(raster)
    if not channel.varies():
        return None
    rows = upscale(channel, runner, tile_plan, table=table, batch_size=batch_size)
    return (part[..., 0] for part in rows)


def edges_of_raster(
    raster: Raster, tile_plan: TilePlan, part: int | None, trace: Trace, progress: Progress | None = None
) -> TileEdges:
    """Measure the edges of every tile in one pass; see `cabm.tiling.edges.edges_of_image`.

    ``progress`` is called with 0 after each row of tiles, so that it can stop this pass, too.
    """
    window = RowWindow(raster, trace)
    found = []
    for band in bands(tile_plan):
        strip = window.strip(band)
        with trace.clock("score"):
            found.append(edges_of_image(_inner(strip), band.plan, part))
        window.release(band.image_rows.start - RowWindow.MARGIN)
        if progress is not None:
            progress(0)
    peaks = None if part is None else np.concatenate([edges.peaks for edges in found])
    return TileEdges(np.concatenate([edges.scores for edges in found]), peaks)


class Flight:
    """Rows of tiles that are in memory together.

    Attributes:
        bands: the rows of tiles.
        numbers: numbers of the tiles in the plan of the image.
    """

    def __init__(self, rows_of_tiles: list[Band], window: RowWindow) -> None:
        self.bands = rows_of_tiles
        self.numbers = slice(rows_of_tiles[0].tiles.start, rows_of_tiles[-1].tiles.stop)
        self._strips = [window.strip(band) for band in rows_of_tiles]

    def tiles(self) -> np.ndarray:
        """Return the tiles: (N,3,h,w)."""
        pairs = zip(self._strips, self.bands, strict=True)
        return np.concatenate([split(_inner(strip), band.plan) for strip, band in pairs])

    def surrounded(self, number: int) -> np.ndarray:
        """Return a tile of the flight with the pixels around it: (3,h+4,w+4)."""
        row, column = divmod(number, self.bands[0].plan.num_columns)
        return surrounded_tile(self._strips[row], self.bands[row].plan, column)


def _flights(tile_plan: TilePlan, window: RowWindow, scale: int, itemsize: int) -> Iterator[Flight]:
    tile_bytes = 3 * tile_plan.tile_height * tile_plan.tile_width * scale**2 * itemsize
    together = max(1, FLIGHT_BYTES // (tile_bytes * tile_plan.num_columns))
    rows_of_tiles = bands(tile_plan)
    while some := list(islice(rows_of_tiles, together)):
        yield Flight(some, window)


def _run(
    runner: TileRunner,
    flight: Flight,
    at_border: np.ndarray,
    trace: Trace,
    batch_size: int,
    dtype: np.dtype,
    table: EdgeToBitTable | None,
) -> TileRun:
    """Return the run over a flight's tiles, at the bits of the table if there is one."""
    numbers, parts = flight.numbers, trace.parts
    with trace.clock("merge"):
        tiles = flight.tiles()
    return TileRun(
        runner,
        tiles,
        None if parts is None else trace.bits[numbers],
        batch_size=batch_size,
        parts=None if parts is None else parts[numbers],
        at_border=at_border[numbers],
        dtype=dtype,
        surrounded=flight.surrounded,
        contrast_limit=None if table is None else table.contrast_limit,
    )


def _rows_of_tiles(
    run: TileRun, columns: int, trace: Trace, progress: Progress | None
) -> Iterator[np.ndarray]:
    """Yield each row of tiles as soon as it is upscaled. The network may already run on later rows."""
    rows_of_tiles = run.upscaled.reshape(-1, columns, *run.upscaled.shape[1:])
    done = np.zeros(rows_of_tiles.shape[:2], bool)
    with closing(iter(run)) as numbers:  # ends its threads even where a traceback keeps this frame alive
        for row, tiles in enumerate(rows_of_tiles):
            while not done[row].all():
                with trace.clock("network"):
                    number = next(numbers)
                done.flat[number] = True
                if progress is not None:
                    progress(1)
            yield tiles


def _inner(strip: np.ndarray) -> np.ndarray:
    """Return a strip without the pixels around it."""
    return strip[:, REACH:-REACH, REACH:-REACH]
