"""Residual blocks on bytes (EDSR, SRResNet), as a chain that runs in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cabm.engine.chains import Chain, Place, own
from cabm.engine.fused import Kernel
from cabm.engine.grid import Grid, Storage
from cabm.engine.layer_numbers import (
    CODED_SUM_TO_CODES,
    CODED_SUM_TO_FLOATS,
    GAIN,
    LEAKY_TO_CODES,
    NEXT_HIGH,
    NEXT_INVERSE,
    READ_HIGH,
    READ_INVERSE,
    SKIP_STEP,
    STEP,
    SUM_TO_CODES,
    SUM_TO_FLOATS,
    TO_CODES,
    ZERO,
)
from cabm.engine.packing import BoundConv, PackedConv, Quantizer, Row


@dataclass(frozen=True)
class Block:
    """One residual block at given bits: conv, (leaky) ReLU, conv, add.

    Attributes:
        conv1: the first convolution.
        conv2: the second convolution. If codes of its input have no sign, they take the place of a ReLU.
        skip: grid of the skip connection; that of the first convolution's input, or one of its own.
        residual: grid of the residual, which is added to the skip connection; None if it stays in float32.
        res_scale: factor on the residual before it is encoded.
        slope: factor on negative results of the first convolution.
    """

    conv1: BoundConv
    conv2: BoundConv
    skip: Grid
    residual: Grid | None = None
    res_scale: float = 1.0
    slope: float = 1.0


@dataclass(frozen=True)
class BlockParts:
    """A residual block for any row of bits.

    Attributes:
        conv1, conv2: the convolutions.
        reads, hidden: quantizers of what they read.
        storage: of the codes that the second one reads: without sign behind a ReLU.
        skip: quantizer of the skip connection.
        residual: quantizer of the residual; None if it stays in float32.
        res_scale, slope: see `Block`.
    """

    conv1: PackedConv
    conv2: PackedConv
    reads: Quantizer
    hidden: Quantizer
    storage: Storage
    skip: Quantizer
    residual: Quantizer | None = None
    res_scale: float = 1.0
    slope: float = 1.0

    def at(self, row: Row) -> Block:
        """Return the block at a row of bits."""
        return Block(
            conv1=self.conv1.at(self.reads.grid(row, Storage.SHIFTED)),
            conv2=self.conv2.at(self.hidden.grid(row, self.storage)),
            skip=self.skip.grid(row, Storage.SHIFTED),
            residual=None if self.residual is None else self.residual.grid(row, Storage.SIGNED),
            res_scale=self.res_scale,
            slope=self.slope,
        )


def residual_chain(kernel: Kernel, blocks: Sequence[Block]) -> Chain:
    """Return residual blocks, at least one, as a chain."""
    channels = blocks[0].conv1.conv.channels
    chain = Chain(kernel, channels)
    read, skip = (chain.codes(channels, ZERO) for _ in range(2))
    hidden = chain.codes(channels, blocks[0].conv2.grid.zero)
    chain.encode(read, blocks[0].conv1.grid)
    chain.encode(skip, blocks[0].skip)
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        first = TO_CODES if block.slope == 1 else LEAKY_TO_CODES
        chain.convolve(block.conv1, first, read, own(block.conv2.grid, block.slope), target=hidden)
        numbers: dict[int, Any] = {SKIP_STEP: block.skip.scale}
        to_codes, to_floats = SUM_TO_CODES, SUM_TO_FLOATS
        if block.residual is not None:
            to_codes, to_floats = CODED_SUM_TO_CODES, CODED_SUM_TO_FLOATS
            numbers |= own(block.residual) | {GAIN: block.res_scale, STEP: block.residual.scale}
        # in place: a pixel's sum reads that pixel of the skip connection only
        if following is None:
            places = {"target": skip, "floats": Place(chain.result)}
            chain.convolve(block.conv2, to_floats, hidden, numbers, **places)
        else:
            grids = following.conv1.grid, following.skip
            numbers |= {READ_INVERSE: grids[0].inverse, READ_HIGH: grids[0].levels}
            numbers |= {NEXT_INVERSE: grids[1].inverse, NEXT_HIGH: grids[1].levels}
            chain.convolve(block.conv2, to_codes, hidden, numbers, target=skip, following=read)
    return chain
