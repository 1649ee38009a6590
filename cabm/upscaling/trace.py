"""What upscaling an image took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from cabm.tiling.parts import TileParts

Progress = Callable[[int], object]
"""Called with the number of tiles that were finished since the last call; 0 while they are scored."""


def seconds_by_bits(
    bits: np.ndarray, seconds: np.ndarray, parts: TileParts | None
) -> dict[int, tuple[int, float]]:
    """Return how many tiles have so many bits on average, rounded, and the seconds of a whole one of them.

    Args:
        bits: (N,L); tiles of zeros bypassed the network and are left out.
        seconds: (N,) time of each tile.
        parts: which parts of the tiles bypassed the network; the time of such a tile counts for the rest.
    """
    work = np.ones(len(bits)) if parts is None else parts.work
    rounded = np.rint(bits.mean(axis=1)).astype(int)
    computed = (rounded > 0) & (work > 0)
    return {
        int(width): (int(chosen.sum()), float(seconds[chosen].sum() / work[chosen].sum()))
        for width in np.unique(rounded[computed])
        for chosen in [computed & (rounded == width)]
    }


@dataclass
class Trace:
    """Bits, bypassed parts and times of an image, filled in while it is upscaled.

    Attributes:
        scores: (N,) edge score of each tile; None for models without a table.
        parts: which parts of the tiles bypass the network; None for models without a table.
        bits: (N,L) bits of each tile, zeros for tiles that bypass the network; None for models without
            bits.
        tile_seconds: (N,) time of each tile on its thread, or its share of its batches; None until all are
            finished.
        seconds: by phase: decode, score, look up, network, merge. The network runs beside the other phases;
            its time is what they waited for it.
    """

    scores: np.ndarray | None = None
    parts: TileParts | None = None
    bits: np.ndarray | None = None
    tile_seconds: np.ndarray | None = None
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
