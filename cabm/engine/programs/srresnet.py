"""The integer program of SRResNet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.engine.active_tail import ActiveTail
from cabm.engine.elementwise import add_decode, add_encode, encode
from cabm.engine.float_conv import FloatConv
from cabm.engine.grid import Grid, Storage
from cabm.engine.packing import BoundConv, PackedConv, Row, bits_of, grid_of, skip_grid
from cabm.models.srresnet import SRResNet

ONE = np.float32(1)


@dataclass(frozen=True)
class _Block:
    """One residual block at given bits."""

    conv1: BoundConv
    skip: Grid  # of the skip connection
    conv2: BoundConv
    norm1: nn.BatchNorm2d
    norm2: nn.BatchNorm2d
    slope: float

    def run(self, codes: Tensor) -> Tensor:
        """Return the residual (1,n,h,w) float32 for the codes of the block's input."""
        # batch norm is not folded into the convolution: it would round differently and change codes
        hidden = encode(self.norm1(self.conv1.to_float(codes)), self.conv2.grid, slope=self.slope)
        return self.norm2(self.conv2.to_float(hidden))


class SRResNetProgram:
    """A trained SRResNet: blocks on bytes; head, last body convolution and tail in float.

    Args:
        model: of any quantized kind, with float head and tail, not of the released graph.
        float_dtype: type of the float convolutions after the blocks.
    """

    def __init__(self, model: SRResNet, float_dtype: torch.dtype) -> None:
        self._slope = float(model.prelu.weight)
        self._blocks = model.body
        self._convs = [(PackedConv(block.conv1), PackedConv(block.conv2)) for block in model.body]
        self._head = FloatConv(model.head.weight, None, torch.float32)
        self._body_end = FloatConv(*_folded(model.body_end, model.body_end_bn), float_dtype)
        slopes = [float(prelu.weight) for prelu in model.upsample_prelu]
        self._tail = ActiveTail([*model.upsample, model.tail], model.factors, slopes, float_dtype)

    def plan(self, row: Row) -> list[_Block]:
        """Return the blocks at the bits of ``row``."""
        return [
            _Block(
                conv1=conv1.at(grid_of(block.act1, row, Storage.SHIFTED)),
                conv2=conv2.at(grid_of(block.act2, row, Storage.SHIFTED)),
                norm1=block.bn1,
                norm2=block.bn2,
                slope=self._slope,
                skip=skip_grid(block, bits_of(block.act1, row)),
            )
            for block, (conv1, conv2) in zip(self._blocks, self._convs, strict=True)
        ]

    def run(self, x: Tensor, plan: list[_Block]) -> Tensor:
        """Upscale one tile; see `cabm.engine.programs.Program`."""
        head = F.leaky_relu(self._head(x), self._slope, inplace=True)
        return self._tail(self._body_end(self._body(head, plan)).float().add_(head), x)

    @staticmethod
    def _body(head: Tensor, plan: list[_Block]) -> Tensor:
        read, skip = (encode(head, grid) for grid in (plan[0].conv1.grid, plan[0].skip))
        for block, following in pairwise(plan):
            total = partial(add_encode, block.run(read), ONE, skip, block.skip)
            read, skip = total(following.conv1.grid), total(following.skip)
        return add_decode(plan[-1].run(read), ONE, skip, plan[-1].skip)


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution followed by batch norm in evaluation mode."""
    factors = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return conv.weight * factors.view(-1, 1, 1, 1), norm.bias - norm.running_mean * factors
