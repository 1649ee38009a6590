"""EDSR on bytes."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.engine.blocks import Block, Blocks, FusedBlocks, FusedWeights, fused_kernel
from cabm.engine.elementwise import dense
from cabm.engine.grid import Storage
from cabm.engine.linear_tail import CollapsedTail
from cabm.engine.onednn import IntegerConv
from cabm.engine.packing import PackedConv, Row, bits_of, grid_at
from cabm.models.edsr import EDSR, ResidualBlock


class EdsrProgram:
    """A trained EDSR: blocks on bytes, head, last body convolution and collapsed tail in float.

    Args:
        model: of any quantized kind, with float ends.
        float_dtype: what the float convolutions behind the blocks compute in.
    """

    def __init__(self, model: EDSR, float_dtype: torch.dtype) -> None:
        self._model = model
        self._dtype = float_dtype
        convs = [(block.conv1, block.conv2) for block in model.body]
        self._kernel = fused_kernel([conv for pair in convs for conv in pair])
        pack = IntegerConv if self._kernel is None else FusedWeights
        self._convs = [tuple(PackedConv(conv, pack=pack) for conv in pair) for pair in convs]
        self._block = cache(self._make_block)  # rows are many, combinations of a block's widths few
        body_end = model.body_end
        self._body_end = (
            body_end.weight.detach().to(float_dtype).contiguous(memory_format=torch.channels_last),
            body_end.bias.detach().to(float_dtype),
        )
        convs = [*model.upsample, model.tail]
        replicate = model.replicate_tail
        self._tail = CollapsedTail(convs, model.factors, float_dtype, replicate=replicate)

    def plan(self, row: Row) -> Blocks | FusedBlocks:
        """Return the blocks at the bits of ``row``."""
        blocks = [
            self._block(index, tuple(bits_of(act, row) for act in _quantizers(block)))
            for index, block in enumerate(self._model.body)
        ]
        return Blocks(blocks) if self._kernel is None else FusedBlocks(self._kernel, blocks)

    def run(self, x: Tensor, plan: Blocks | FusedBlocks) -> Tensor:
        """Upscale one tile; see `Program.run`."""
        x = x - self._model.mean
        head = self._head(x)
        feature = F.conv2d(plan(head).to(self._dtype), *self._body_end, padding=1).float()
        return self._tail(feature.add_(head), x).add_(self._model.mean)

    def _make_block(self, index: int, bits: tuple[int, ...]) -> Block:
        block, (conv1, conv2) = self._model.body[index], self._convs[index]
        storages = (Storage.SHIFTED, Storage.POSITIVE, Storage.SIGNED)
        read, hidden, residual = map(grid_at, _quantizers(block), bits, storages)
        return Block(conv1.reading(read), conv2.reading(hidden), residual, block.res_scale)

    def _head(self, x: Tensor) -> Tensor:
        head = self._model.head
        return dense(F.conv2d(dense(x), head.weight, head.bias, padding=1))


def _quantizers(block: ResidualBlock) -> tuple[nn.Module, ...]:
    """Of what the convolutions read, and of the residual."""
    return block.act1, block.act2, block.act3
