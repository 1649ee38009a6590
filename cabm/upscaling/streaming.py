"""Upscale an image row of tiles by row of tiles: memory is bounded by the tiles in flight.

The image is read twice. The first pass scores every tile and looks all bits up; they are known before
the network runs, so the second pass can group the tiles in flight by their bits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from cabm.imaging.bicubic import REACH, surround
from cabm.imaging.pixels import (
    ALPHA_REACH,
    FILL_REACH,
    has_alpha,
    image_output,
    network_input,
    upscale_alpha,
)
from cabm.imaging.raster import Raster
from cabm.tables.table import EdgeToBitTable
from cabm.tiling.blending import TileJoiner
from cabm.tiling.edges import TileEdges, edges_of_image
from cabm.tiling.parts import TileParts
from cabm.tiling.plan import Band, TilePlan, bands, split
from cabm.upscaling.runners import TileRunner
from cabm.upscaling.tiles import TileRun, surrounded_tile, touches_border

FLIGHT_BYTES = 96 << 20
"""Upscaled tiles that are held at once; at least one row of tiles."""

_REACH = max(FILL_REACH, ALPHA_REACH)

Progress = Callable[[int], object]


@dataclass
class Trace:
    """What upscaling an image took; filled in on the way.

    Attributes:
        parts: which parts of the tiles do not enter the network; None for models without a table.
        bits: (N,L) bits of each tile, zeros: not computed; None for models without bits.
        seconds: by phase: decode, score, look up, network, merge. Of the network, what the others waited
            for: it goes on beside them.
    """

    parts: TileParts | None = None
    bits: np.ndarray | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(phase, time.perf_counter() - start)

    def add(self, phase: str, seconds: float) -> None:
        """Add time to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


class RowWindow:
    """Rows of a raster by number, read once from the top; holds what was not released.

    Args:
        raster: what to read.
        trace: where the time of decoding goes.
    """

    def __init__(self, raster: Raster, trace: Trace) -> None:
        self._blocks = raster.blocks()
        self._height = raster.height
        self._trace = trace
        self._held: deque[tuple[int, np.ndarray]] = deque()
        self._read = 0

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the rows start..stop - 1 (clipped to the image) as (n, W, C)."""
        start, stop = max(start, 0), min(stop, self._height)
        while self._read < stop:
            with self._trace.clock("decode"):
                block = next(self._blocks)
            self._held.append((self._read, block))
            self._read += len(block)
        assert self._held[0][0] <= start, "these rows were released"
        parts = [
            block[max(start - top, 0) : stop - top]
            for top, block in self._held
            if top < stop and top + len(block) > start
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def release(self, row: int) -> None:
        """Forget the rows before ``row``."""
        while self._held and self._held[0][0] + len(self._held[0][1]) <= row:
            self._held.popleft()


def edges_of_raster(raster: Raster, tile_plan: TilePlan, part: int | None, trace: Trace) -> TileEdges:
    """Measure the edges of every tile of a raster, in one pass; see `cabm.tiling.edges.edges_of_image`."""
    window = RowWindow(raster, trace)
    found = []
    for band in bands(tile_plan):
        strip = _strip(window, band, raster, trace)
        with trace.clock("score"):
            found.append(edges_of_image(strip[:, REACH:-REACH, REACH:-REACH], band.plan, part))
        window.release(band.image_rows.start - _REACH)
    peaks = None if part is None else torch.cat([edges.peaks for edges in found])
    return TileEdges(torch.cat([edges.scores for edges in found]), peaks)


def upscale(
    raster: Raster,
    runner: TileRunner,
    tile_plan: TilePlan,
    *,
    table: EdgeToBitTable | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
    trace: Trace | None = None,
) -> Iterator[np.ndarray]:
    """Yield the upscaled image from top to bottom.

    Args:
        raster: the image.
        runner: what upscales a batch of tiles.
        tile_plan: the tiles of the image.
        table: gives a tile's bits from its edge score; for CABM models.
        batch_size: tiles that the runner gets at once.
        progress: called with the number of tiles that are done.
        trace: filled in; complete when the last rows have been taken.

    Yields:
        (n, W * scale, C) in the channels and type of the raster, height * scale rows together.
    """
    trace = Trace() if trace is None else trace
    scale = runner.scale
    if table is not None:
        edges = edges_of_raster(raster, tile_plan, table.part, trace)
        with trace.clock("look up"):
            trace.bits, trace.parts = table.assign(edges, tile_plan)
    at_border = touches_border(tile_plan)
    dtype = torch.uint8 if raster.dtype == np.uint8 else torch.uint16
    window, joiner = RowWindow(raster, trace), TileJoiner(tile_plan, scale)
    first_row, chosen = 0, []
    for flight in _flights(tile_plan, scale, dtype.itemsize):
        numbers = slice(flight[0].tiles.start, flight[-1].tiles.stop)
        strips = [_strip(window, band, raster, trace) for band in flight]
        with trace.clock("merge"):
            inside = slice(REACH, -REACH)
            pairs = zip(strips, flight, strict=True)
            tiles = torch.cat([split(strip[:, inside, inside], band.plan) for strip, band in pairs])
            bits = None if table is None else torch.from_numpy(trace.bits[numbers])
        run = TileRun(
            runner,
            tiles,
            bits,
            batch_size=batch_size,
            parts=None if trace.parts is None else trace.parts[numbers],
            at_border=at_border[numbers],
            dtype=dtype,
            surrounded=partial(_surrounded, strips, flight),
        )
        for row_of_tiles in _rows_of_tiles(run, tile_plan.num_columns, trace, progress):
            with trace.clock("merge"):
                rows = joiner.add(row_of_tiles)
                alpha = _alpha(window, raster, first_row, len(rows), scale)
                rows = image_output(rows, raster.channels, alpha)
            first_row += len(rows)
            yield rows
            del rows, row_of_tiles
        chosen.append(run.used)
        del run  # the largest thing here: it does not outlive its use
        window.release(flight[-1].image_rows.start - 2 * _REACH)
    if table is None and chosen[0] is not None:
        trace.bits = torch.cat(chosen).numpy()


def _rows_of_tiles(
    run: TileRun, columns: int, trace: Trace, progress: Progress | None
) -> Iterator[np.ndarray]:
    """Yield each row of tiles as soon as it is upscaled; the network may go on meanwhile."""
    rows_of_tiles = run.upscaled.reshape(-1, columns, *run.upscaled.shape[1:])
    done = np.zeros(rows_of_tiles.shape[:2], bool)
    with closing(iter(run)) as numbers:  # a traceback would keep it, and its threads at work
        for row, tiles in enumerate(rows_of_tiles):
            while not done[row].all():
                with trace.clock("network"):
                    number = next(numbers)
                done.flat[number] = True
                if progress is not None:
                    progress(1)
            yield tiles


def _strip(window: RowWindow, band: Band, raster: Raster, trace: Trace) -> torch.Tensor:
    """What the network sees of a row of tiles, and the pixels around: (3, n + 4, W + 4)."""
    margin = FILL_REACH if has_alpha(raster.channels) else REACH
    first, end = band.image_rows.start - margin, band.image_rows.stop + margin
    rows = window.rows(first, end)
    with trace.clock("merge"):
        seen = surround(network_input(rows))
        above = band.image_rows.start - max(first, 0)
        return seen[:, above : above + band.image_rows.stop - band.image_rows.start + 2 * REACH]


def _surrounded(strips: list[torch.Tensor], flight: list[Band], number: int) -> torch.Tensor:
    row, column = divmod(number, flight[0].plan.num_columns)
    return surrounded_tile(strips[row], flight[row].plan, column)


def _alpha(window: RowWindow, raster: Raster, first: int, count: int, scale: int) -> np.ndarray | None:
    """Output rows first..first + count - 1 of the alpha channel, if there is one."""
    if not has_alpha(raster.channels):
        return None
    above = max(first // scale - ALPHA_REACH, 0)
    rows = window.rows(above, -(-(first + count) // scale) + ALPHA_REACH)
    upscaled = upscale_alpha(rows[..., -1], scale)
    return upscaled[first - above * scale :][:count]


def _flights(tile_plan: TilePlan, scale: int, itemsize: int) -> Iterator[list[Band]]:
    """Rows of tiles that are in memory together."""
    tile_bytes = 3 * tile_plan.tile_height * tile_plan.tile_width * scale**2 * itemsize
    together = max(1, FLIGHT_BYTES // (tile_bytes * tile_plan.num_columns))
    flight: list[Band] = []
    for band in bands(tile_plan):
        flight.append(band)
        if len(flight) == together:
            yield flight
            flight = []
    if flight:
        yield flight
