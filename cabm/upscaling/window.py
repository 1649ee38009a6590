"""The rows of an image that are in memory while it is upscaled."""

from __future__ import annotations

from collections import deque

import numpy as np

from cabm.imaging.bicubic import REACH, surround
from cabm.imaging.pixels import ALPHA_REACH, FILL_REACH, has_alpha, network_input, upscale_alpha
from cabm.imaging.raster import Raster
from cabm.tiling.plan import Band
from cabm.upscaling.trace import Trace


class RowWindow:
    """Reads a raster once, from top to bottom, and holds its rows until they are released.

    Args:
        raster: the image.
        trace: receives the time of decoding.
    """

    MARGIN = max(FILL_REACH, ALPHA_REACH)
    """Rows that `strip` and `alpha` read above and below the rows that they return, at most."""

    def __init__(self, raster: Raster, trace: Trace) -> None:
        self._blocks = raster.blocks()
        self._height = raster.height
        self._has_alpha = has_alpha(raster.channels)
        self._trace = trace
        self._held: deque[tuple[int, np.ndarray]] = deque()
        self._read = 0

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows start..stop - 1, clipped to the image: (n, W, C)."""
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
        """Forget the rows above ``row``."""
        while self._held and self._held[0][0] + len(self._held[0][1]) <= row:
            self._held.popleft()

    def strip(self, band: Band) -> np.ndarray:
        """Return the network's input for a row of tiles, and `REACH` pixels around it: (3,n+4,W+4)."""
        margin = FILL_REACH if self._has_alpha else REACH
        first, end = band.image_rows.start - margin, band.image_rows.stop + margin
        rows = self.rows(first, end)
        with self._trace.clock("merge"):
            pixels = surround(network_input(rows))
            above = band.image_rows.start - max(first, 0)
            return pixels[:, above : above + band.image_rows.stop - band.image_rows.start + 2 * REACH]

    def alpha(self, first: int, count: int, scale: int) -> np.ndarray | None:
        """Return ``count`` rows of the upscaled alpha channel; None if the image has none.

        Args:
            first: number of the first row, in the upscaled image.
            count: number of rows.
            scale: scale factor.
        """
        if not self._has_alpha:
            return None
        above = max(first // scale - ALPHA_REACH, 0)
        rows = self.rows(above, -(-(first + count) // scale) + ALPHA_REACH)
        upscaled = upscale_alpha(rows[..., -1], scale)
        return upscaled[first - above * scale :][:count]
