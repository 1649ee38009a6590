"""EDSR's residual blocks on bytes, layer by layer; `cabm.engine.fused` runs them in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
from torch import Tensor

from cabm.engine.elementwise import add_decode, add_encode, encode
from cabm.engine.grid import Grid
from cabm.engine.layer_numbers import NEXT_READ, NUMBERS, PRODUCTS
from cabm.engine.packing import BoundConv


@dataclass(frozen=True)
class Block:
    """One residual block at given bits: conv, ReLU, conv, add.

    Attributes:
        conv1: the first convolution.
        conv2: the second convolution.
        residual: grid of the residual, which is added to the skip connection.
        skip: grid of the skip connection; that of the first convolution's input, or one of its own.
        res_scale: factor on the residual before it is encoded.
    """

    conv1: BoundConv
    conv2: BoundConv
    residual: Grid
    skip: Grid
    res_scale: float

    def run(self, codes: Tensor) -> Tensor:
        """Return the codes of the residual (1,C,h,w) for the codes of the block's input."""
        hidden = self.conv1.to_codes(codes, self.conv2.grid)
        if self.res_scale == 1:
            return self.conv2.to_codes(hidden, self.residual)
        return encode(self.conv2.to_float(hidden).mul_(self.res_scale), self.residual)

    @cached_property
    def layers(self) -> tuple[np.ndarray, ...]:
        """The fused call's weights, starts, factors, biases and numbers of the two convolutions.

        The numbers NEXT_READ and NEXT_SKIP depend on the following block and are left 0.
        """
        convs = (self.conv1, self.conv2)
        starts = np.stack([each.conv.starts for each in convs])
        factors, biases = np.empty((2, *starts.shape), dtype=np.float32)
        for row, each in enumerate(convs):
            factors[row], biases[row] = each.scaling.arrays
            factors[row] /= each.conv.unit
        hidden, residual = self.conv2.grid, self.residual
        numbers = np.zeros((2, NUMBERS), dtype=np.float32)
        first = (1, hidden.inverse, hidden.low, hidden.levels, 0, 0)
        second = (self.res_scale, residual.inverse, residual.low, residual.levels)
        numbers[:, :NEXT_READ] = first, (*second, residual.scale, self.skip.scale)
        numbers[:, PRODUCTS] = [each.conv.products for each in convs]
        return np.array([each.conv.address for each in convs], np.uintp), starts, factors, biases, numbers


class Blocks:
    """Consecutive residual blocks, at least one, run layer by layer."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = list(blocks)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the blocks on (1,C,h,w) float32; the result has the same shape and type."""
        first, last = self.blocks[0], self.blocks[-1]
        read, skip = encode(x, first.conv1.grid), encode(x, first.skip)
        for block, following in pairwise(self.blocks):
            total = partial(add_encode, block.run(read), block.residual.scale, skip, block.skip)
            read, skip = total(following.conv1.grid), total(following.skip)
        return add_decode(last.run(read), last.residual.scale, skip, last.skip)
