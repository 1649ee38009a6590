"""The integer program of CARN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cabm.engine.chains import Chain, Place, own
from cabm.engine.float_rows import Rows
from cabm.engine.float_tail import FloatTail
from cabm.engine.fused import FloatWeights, Kernel
from cabm.engine.grid import Storage
from cabm.engine.layer_numbers import AFTER, FIXED, JOIN, SINGLE_TO_BOTH, SLOPE, TO_CODES
from cabm.engine.packing import BoundConv, PackedConv, Quantizer, Row
from cabm.engine.programs import Convolution, Tail


class BoundBlock(NamedTuple):
    """The convolutions of a residual block at given bits."""

    conv1: BoundConv
    conv2: BoundConv


@dataclass(frozen=True, eq=False)
class CarnBlock:
    """One residual block for any row of bits: its convolutions, and the quantizers of what they read."""

    conv1: PackedConv
    conv2: PackedConv
    reads: Quantizer
    hidden: Quantizer

    def at(self, row: Row) -> BoundBlock:
        """Return the block at a row of bits."""
        conv1 = self.conv1.at(self.reads.grid(row, self.reads.input_storage))
        return BoundBlock(conv1, self.conv2.at(self.hidden.grid(row, Storage.POSITIVE)))


@dataclass(frozen=True, eq=False)
class CarnProgram:
    """Residual blocks on bytes; head, fusions and tail in float.

    Blocks and fusions are one compiled call, or run layer by layer.

    Images that fusions read are of 16-bit numbers if the form has such images. This changes codes, but the
    result by less than 0.02 levels on average.

    Attributes:
        kernel: the compiled call; None: layer by layer.
        mean: (3,) float32 subtracted from the image in 0..1.
        head: the first convolution.
        blocks: the residual blocks of all cascades, in order.
        inner: the fusions of each cascade.
        outer: the fusions of the body, one behind each cascade.
        rows: the tail, compiled; None: ``tail``.
        tail: the same in PyTorch.
    """

    kernel: Kernel | None
    mean: np.ndarray
    head: Convolution
    blocks: tuple[CarnBlock, ...]
    inner: tuple[tuple[FloatWeights | Convolution, ...], ...]
    outer: tuple[FloatWeights | Convolution, ...]
    rows: Rows | FloatTail | None
    tail: Tail | None = None

    def plan(self, row: Row) -> Any:
        """Return the body at the bits of ``row``."""
        blocks = [block.at(row) for block in self.blocks]
        if self.kernel is not None:
            return self._chain(self.kernel, blocks)
        from cabm.engine.layerwise import CarnLayers

        return CarnLayers(blocks, self.inner, self.outer)

    def run(self, x: np.ndarray, plan: Any) -> np.ndarray:
        """Upscale one tile; see `cabm.engine.programs.Program`."""
        head = self.head(x / np.float32(255) - self.mean)
        hidden = plan.run(head)
        return self.tail(hidden, head, x) if self.rows is None else self.rows(hidden)

    def _chain(self, kernel: Kernel, blocks: list[BoundBlock]) -> Chain:
        """Return the body as a chain. Images of all that a fusion reads replace concatenations."""
        n, compact = blocks[0].conv1.conv.channels, kernel.compact
        fixed = kernel.form.compact == FIXED
        each = kernel.padded_floats(n, compact=compact)
        chain = Chain(kernel, n)
        steps = len(self.outer)  # cascades, and blocks of a cascade
        parts = [n] * (steps + 1)
        inner = chain.floats(*parts, passing=True, compact=compact)
        outer = chain.floats(*parts, compact=compact)
        between = chain.floats(n, passing=True, compact=compact and not fixed)
        sums = chain.floats(n, passing=True) if fixed else between  # fixed point waits for the whole row
        hidden = chain.codes(n, 0)
        reads = {zero: chain.codes(n, zero) for zero in {block.conv1.grid.zero for block in blocks}}
        chain.begin_group()
        if fixed:
            chain.copy(between)
        for image in (inner, outer):
            chain.fix(between, Place(image)) if fixed else chain.copy(image)
        chain.encode(reads[blocks[0].conv1.grid.zero], blocks[0].conv1.grid)

        def fuse(weights: FloatWeights, source: int, following: BoundBlock, floats: Place) -> None:
            grid, later = following.conv1.grid, fixed and floats.image in (inner, outer)
            places = {"target": reads[grid.zero], "floats": Place(between) if later else floats}
            chain.pointwise(weights, SINGLE_TO_BOTH, source, own(grid, 0.0), **places)
            if later:
                chain.fix(between, floats)

        for number, block in enumerate(blocks):
            step, index = divmod(number, steps)
            following = blocks[(number + 1) % len(blocks)]  # of the last block nothing follows
            chain.convolve(
                block.conv1, TO_CODES, reads[block.conv1.grid.zero], own(block.conv2.grid), target=hidden
            )
            to = Place(inner, (index + 1) * each)
            places = {
                "floats": Place(sums) if fixed else to,
                "addend": Place(between if index or fixed else inner),
            }
            chain.convolve(block.conv2, JOIN, hidden, {SLOPE: 1, AFTER: 0}, **places)
            if fixed:
                chain.fix(sums, to)
            last = index == steps - 1
            to = Place(outer, (step + 1) * each) if last else Place(between)
            fuse(self.inner[step][index], inner, following, to)
            if last:
                if following is not blocks[0]:
                    chain.begin_group()
                to = Place(chain.result) if following is blocks[0] else Place(inner)
                fuse(self.outer[step], outer, following, to)
        return chain
