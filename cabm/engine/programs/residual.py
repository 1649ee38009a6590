"""The integer program of EDSR and SRResNet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cabm.engine.blocks import Block, BlockParts, residual_chain
from cabm.engine.float_rows import Rows
from cabm.engine.float_tail import FloatTail
from cabm.engine.fused import Kernel
from cabm.engine.packing import Row
from cabm.engine.programs import Convolution, Tail


@dataclass(frozen=True, eq=False)
class ResidualProgram:
    """A head, residual blocks on bytes, a last convolution of the body, and a tail.

    Attributes:
        kernel: the compiled call for the blocks; None: they run layer by layer.
        mean: (3,) float32 subtracted from the image.
        head: the first convolution, with its activation.
        blocks: the residual blocks.
        rows: the last convolution and the tail, compiled; None: ``tail``.
        tail: the same in PyTorch.
    """

    kernel: Kernel | None
    mean: np.ndarray
    head: Convolution
    blocks: tuple[BlockParts, ...]
    rows: Rows | FloatTail | None
    tail: Tail | None = None
    # hundreds of rows combine a few widths per block
    _bound: dict[Any, Block] = field(default_factory=dict, init=False, repr=False)

    def plan(self, row: Row) -> Any:
        """Return the blocks at the bits of ``row``."""
        blocks = [self._block(index, row) for index in range(len(self.blocks))]
        if self.kernel is not None:
            return residual_chain(self.kernel, blocks)
        from cabm.engine.layerwise import Blocks

        return Blocks(blocks)

    def run(self, x: np.ndarray, plan: Any) -> np.ndarray:
        """Upscale one tile; see `cabm.engine.programs.Program`."""
        x = x - self.mean
        head = self.head(x)
        hidden = plan.run(head)
        return self.tail(hidden, head, x) if self.rows is None else self.rows(hidden, addend=head)

    def _block(self, index: int, row: Row) -> Block:
        parts = self.blocks[index]
        key = index, parts.reads.bits(row), parts.hidden.bits(row)
        if key not in self._bound:
            self._bound[key] = parts.at(row)
        return self._bound[key]
