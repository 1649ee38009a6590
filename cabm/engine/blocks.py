"""Residual blocks on bytes (EDSR, SRResNet): layer by layer, or as a chain that runs in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from cabm.engine.chains import Chain, Place, own
from cabm.engine.fused import Convolution, Kernel
from cabm.engine.grid import Grid
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

if TYPE_CHECKING:
    from torch import Tensor

    from cabm.engine.packing import BoundConv


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

    conv1: BoundConv | Convolution
    conv2: BoundConv | Convolution
    skip: Grid
    residual: Grid | None = None
    res_scale: float = 1.0
    slope: float = 1.0

    @property
    def residual_step(self) -> np.float32:
        """Step of what `run` returns."""
        return np.float32(1) if self.residual is None else self.residual.scale

    def run(self, codes: Tensor) -> Tensor:
        """Return the residual (1,C,h,w), as codes or float32, for the codes of the block's input.

        This and `Blocks` take PyTorch, unlike a chain, so they import what needs it.
        """
        from cabm.engine.elementwise import encode

        if self.slope == 1:
            hidden = self.conv1.to_codes(codes, self.conv2.grid)
        else:
            hidden = encode(self.conv1.to_float(codes), self.conv2.grid, slope=self.slope)
        if self.residual is None:
            return self.conv2.to_float(hidden)
        if self.res_scale == 1:
            return self.conv2.to_codes(hidden, self.residual)
        return encode(self.conv2.to_float(hidden).mul_(self.res_scale), self.residual)


class Blocks:
    """Consecutive residual blocks, at least one, run layer by layer."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = list(blocks)

    def run(self, x: Tensor) -> Tensor:
        """Run the blocks on (1,C,h,w) float32; the result has the same shape and type."""
        from cabm.engine.elementwise import add_decode, add_encode, encode

        first, last = self.blocks[0], self.blocks[-1]
        read, skip = encode(x, first.conv1.grid), encode(x, first.skip)
        for block, following in pairwise(self.blocks):
            total = partial(add_encode, block.run(read), block.residual_step, skip, block.skip)
            read, skip = total(following.conv1.grid), total(following.skip)
        return add_decode(last.run(read), last.residual_step, skip, last.skip)


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
