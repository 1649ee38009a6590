"""The integer program of CARN."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine.active_tail import ActiveTail
from cabm.engine.elementwise import encode
from cabm.engine.float_conv import FloatConv
from cabm.engine.grid import Storage
from cabm.engine.packing import BoundConv, PackedConv, Row, grid_of, input_storage
from cabm.models.carn import CARN, Cascade, ResidualBlock


@dataclass(frozen=True)
class _Block:
    """One residual block at given bits."""

    conv1: BoundConv
    conv2: BoundConv

    def run(self, x: Tensor) -> Tensor:
        """Return the block's output (N,n,h,w) float32."""
        hidden = self.conv1.to_codes(encode(x, self.conv1.grid), self.conv2.grid)
        return F.relu(self.conv2.to_float(hidden).add_(x), inplace=True)


class CarnProgram:
    """A trained CARN: residual blocks on bytes; head, fusions and tail in float.

    The fusions are followed by quantizers and stay in float32: a code that is rounded differently would
    change many codes after it.

    Args:
        model: of any quantized kind, with float head and tail.
        float_dtype: type that the tail computes in.
    """

    def __init__(self, model: CARN, float_dtype: torch.dtype) -> None:
        self._model = model
        self._packed = {
            block: (PackedConv(block.conv1), PackedConv(block.conv2))
            for block in model.modules()
            if isinstance(block, ResidualBlock)
        }
        cascades = [module for module in model.modules() if isinstance(module, Cascade)]
        self._fusions = {
            fusion: FloatConv(fusion.weight, fusion.bias, torch.float32)
            for cascade in cascades
            for fusion in cascade.fusion
        }
        self._head = FloatConv(model.head.weight, model.head.bias, torch.float32)
        slopes = [0.0] * len(model.factors)
        convs = [*model.upsample, model.tail]
        self._tail = ActiveTail(convs, model.factors, slopes, float_dtype, gain=255.0, offset=model.mean)

    def plan(self, row: Row) -> dict[ResidualBlock, _Block]:
        """Return the residual blocks at the bits of ``row``."""
        return {
            block: _Block(
                conv1=conv1.at(grid_of(block.act1, row, input_storage(block.act1))),
                conv2=conv2.at(grid_of(block.act2, row, Storage.POSITIVE)),
            )
            for block, (conv1, conv2) in self._packed.items()
        }

    def run(self, x: Tensor, plan: dict[ResidualBlock, _Block]) -> Tensor:
        """Upscale one tile; see `cabm.engine.programs.Program`."""
        head = self._head(x / 255 - self._model.mean)
        return self._tail(self._cascade(self._model.body, head, plan), x)

    def _cascade(self, cascade: Cascade, x: Tensor, plan: dict[ResidualBlock, _Block]) -> Tensor:
        collected, hidden = [x], x
        for block, fusion in zip(cascade.blocks, cascade.fusion, strict=True):
            if isinstance(block, Cascade):
                hidden = self._cascade(block, hidden, plan)
            else:
                hidden = plan[block].run(hidden)
            collected.append(hidden)
            hidden = F.relu(self._fusions[fusion](torch.cat(collected, dim=1)), inplace=True)
        return hidden
