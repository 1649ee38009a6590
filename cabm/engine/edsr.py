"""EDSR on bytes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine.grid import Grid, Storage
from cabm.engine.lower import PackedConv, Row, Step, grid_of, is_skipped
from cabm.engine.steps import add_decode, add_encode, dense, encode
from cabm.engine.tail import CollapsedTail
from cabm.models.edsr import EDSR


@dataclass(frozen=True)
class _Block:
    """One residual block at given bits."""

    conv1: Step  # its input is also the skip
    conv2: Step
    residual: Grid  # of what is added to the skip
    res_scale: float

    def run(self, codes: Tensor) -> Tensor:
        """Return the residual's codes."""
        hidden = self.conv1.to_codes(codes, self.conv2.grid)
        if self.res_scale == 1:
            return self.conv2.to_codes(hidden, self.residual)
        return encode(self.conv2.to_float(hidden).mul_(self.res_scale), self.residual)


class EdsrProgram:
    """A trained EDSR: blocks on bytes, head, last body convolution and collapsed tail in float.

    Args:
        model: of any quantized kind, with float ends.
        float_dtype: what the float convolutions behind the blocks compute in.
    """

    def __init__(self, model: EDSR, float_dtype: torch.dtype) -> None:
        self._model = model
        self._dtype = float_dtype
        self._convs = [(PackedConv(block.conv1), PackedConv(block.conv2)) for block in model.body]
        body_end = model.body_end
        self._body_end = (
            body_end.weight.detach().to(float_dtype).contiguous(memory_format=torch.channels_last),
            body_end.bias.detach().to(float_dtype),
        )
        convs = [*model.upsample, model.tail]
        replicate = model.replicate_tail
        self._tail = CollapsedTail(convs, model.factors, float_dtype, replicate=replicate)

    def plan(self, row: Row) -> list[_Block]:
        """Return the blocks that run at the bits of ``row``.

        A skipped block passes its input on, so that the sum before it is encoded for the next that runs.
        """
        return [
            _Block(
                conv1=conv1.reading(grid_of(block.act1, row, Storage.SHIFTED)),
                conv2=conv2.reading(grid_of(block.act2, row, Storage.POSITIVE)),
                residual=grid_of(block.act3, row, Storage.SIGNED),
                res_scale=block.res_scale,
            )
            for block, (conv1, conv2) in zip(self._model.body, self._convs, strict=True)
            if not is_skipped(block.act1, row)
        ]

    def run(self, x: Tensor, plan: list[_Block]) -> Tensor:
        """Enlarge one tile; see `Program.run`."""
        x = x - self._model.mean
        head = self._head(x)
        body = self._body(head, plan) if plan else head
        feature = F.conv2d(body.to(self._dtype), *self._body_end, padding=1).float()
        return self._tail(feature.add_(head), x).add_(self._model.mean)

    @staticmethod
    def _body(head: Tensor, plan: list[_Block]) -> Tensor:
        skip = encode(head, plan[0].conv1.grid)
        for block, following in pairwise(plan):
            residual = block.run(skip)
            grid, out = block.conv1.grid, following.conv1.grid
            skip = add_encode(residual, block.residual.scale, skip, grid, out)
        last = plan[-1]
        return add_decode(last.run(skip), last.residual.scale, skip, last.conv1.grid)

    def _head(self, x: Tensor) -> Tensor:
        head = self._model.head
        return dense(F.conv2d(dense(x), head.weight, head.bias, padding=1))
