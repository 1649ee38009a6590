"""One integer program per backbone: the backbone's layers, on byte codes.

A program holds packed weights; `cabm.engine.building` makes it of a trained backbone. ``plan`` binds the
weights to a row of bits; `cabm.engine.integer` calls it once per row and caches the result. ``run``
upscales a tile by a plan. Programs need PyTorch only where this CPU does not run them in compiled code
alone: such a program has a ``tail`` instead of ``rows``, and layers that run one by one
(`cabm.engine.layerwise`).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from cabm.engine.packing import Row


class Program(Protocol):
    """A trained backbone that runs on bytes."""

    def plan(self, row: Row) -> Any:
        """Return all that `run` needs to know of a row of bits: grids, scales, and the packed weights."""
        ...

    def run(self, x: np.ndarray, plan: Any) -> np.ndarray:
        """Upscale one tile (h,w,3) float32 in 0..255 to (h*scale,w*scale,3) float32.

        Called from several threads at once.
        """
        ...


class Convolution(Protocol):
    """A float convolution with "same" padding."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Convolve (h,w,I) float32 to (h,w,O) float32."""
        ...


class Tail(Protocol):
    """What follows the integer layers, where it is not compiled."""

    def __call__(self, hidden: np.ndarray, head: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the upscaled tile (h*scale,w*scale,3) float32.

        Args:
            hidden: (h,w,n) float32, the result of the integer layers.
            head: (h,w,n) float32, what they read.
            x: (h,w,3) float32, the tile as the head reads it.
        """
        ...
