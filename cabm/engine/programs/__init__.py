"""One integer program per backbone: the backbone's layers, on byte codes.

The constructor packs the weights. ``plan`` binds them to a row of bits; `cabm.engine.integer` calls it once
per row and caches the result. ``run`` upscales a tile by a plan.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from cabm.engine.packing import Row


class Program(Protocol):
    """A trained backbone that runs on bytes."""

    def plan(self, row: Row) -> Any:
        """Return all that `run` needs to know of a row of bits: grids, scales, and the packed weights."""
        ...

    def run(self, x: Tensor, plan: Any) -> Tensor:
        """Upscale one tile (1,3,h,w) float32 in 0..255 to (1,3,h*scale,w*scale) float32.

        Called from several threads at once.
        """
        ...
