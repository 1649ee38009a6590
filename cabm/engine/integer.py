"""Run a compiled model tile by tile: `IntegerModel`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import DTypeLike

from cabm.engine.packing import Row
from cabm.engine.pixels import compiled, to_pixels
from cabm.engine.programs import Program
from cabm.machine.memory import keep_freed_memory
from cabm.machine.threads import in_order
from cabm.models.facts import ModelFacts

KEPT_PLANS = 256  # about 50 kB each


class IntegerModel:
    """A trained model whose quantized convolutions run on bytes; made by `cabm.engine.compile_model`.

    Weights are packed once. The scales and clip values of a row of bits are computed when the row is first
    used. From the first such model on, the process keeps freed memory; see
    `cabm.machine.memory.keep_freed_memory`.

    Args:
        program: the layers.
        facts: of the model.

    Attributes:
        program, facts: as above.
        scale: the scale factor.
        num_adaptive: L, the number of bits per row; 0 for PAMS models, which take no bits.
        in_batches, splits_border: see `cabm.upscaling.runners.TileRunner`.
    """

    in_batches = False
    splits_border = False

    def __init__(self, program: Program, facts: ModelFacts) -> None:
        keep_freed_memory()
        compiled()  # before threads need it
        self.program, self.facts = program, facts
        self.scale = facts.scale
        self._kind = facts.precision.kind
        self.num_adaptive = 0 if self._kind == "pams" else facts.num_adaptive
        self._plan = lru_cache(KEPT_PLANS)(program.plan)

    def run(
        self,
        tiles: np.ndarray,
        bits: np.ndarray | None = None,
        *,
        threads: int | None = None,
        dtype: DTypeLike = np.uint8,
    ) -> np.ndarray:
        """Upscale tiles, each on one thread, so that its activations stay in one core's cache.

        Args:
            tiles: (N,3,h,w) uint8 or float in 0..255.
            bits: (N,L) integer widths from the search space; None for PAMS models.
            threads: tiles that run at once; default: see `cabm.machine.threads.thread_count`. Fewer tiles
                share the threads.
            dtype: uint8 (rounded and clipped to 0..255) or float32 (the network's output).

        Returns:
            (N,3,h*scale,w*scale) of ``dtype``, channels last in memory.

        Raises:
            ValueError: bits are missing, or given to a PAMS model, or have a wrong shape or width.
        """
        n, channels, height, width = tiles.shape
        rows = self._rows(n, bits)
        out = np.empty((n, height * self.scale, width * self.scale, channels), dtype)
        for _ in in_order(
            lambda index: self._upscale(tiles[index], rows[index], out[index]), n, threads=threads
        ):
            pass
        return out.transpose(0, 3, 1, 2)

    def _upscale(self, tile: np.ndarray, row: Row, out: np.ndarray) -> None:
        """Upscale a tile (3,h,w) at a row of bits into ``out`` (h*scale,w*scale,3)."""
        # a copy: a read-only tile would have another type, and loops would be compiled for that
        x = np.array(tile.transpose(1, 2, 0), np.float32, order="C")
        result = self.program.run(x, self._plan(row))
        if out.dtype == np.uint8:
            to_pixels(result, out)
        else:
            out[...] = result

    def __call__(
        self, tiles: np.ndarray, bits: np.ndarray | None, *, inside: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Upscale tiles as `cabm.upscaling.runners.TileRunner` asks: uint8 to uint8, float to float32.

        The result is the same whether or not the tiles are ``inside`` the image.
        """
        dtype = np.uint8 if tiles.dtype == np.uint8 else np.float32
        return self.run(tiles, bits, dtype=dtype), bits

    def _rows(self, n: int, bits: np.ndarray | None) -> Sequence[Row]:
        if bits is None or self._kind == "pams":
            if (bits is None) != (self._kind == "pams"):
                raise ValueError(f"a {self._kind} model {'takes no' if bits is not None else 'needs'} bits")
            return [None] * n
        if bits.shape != (n, self.num_adaptive):
            wanted = (n, self.num_adaptive)
            raise ValueError(f"bits have shape {tuple(bits.shape)}, expected {wanted}")
        space = self.facts.precision.search_space
        unknown = set(np.unique(bits).tolist()) - set(space)
        if unknown:
            raise ValueError(f"bits {sorted(unknown)} are not in the search space {list(space)}")
        return [tuple(row) for row in bits.tolist()]
