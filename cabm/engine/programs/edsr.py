"""The integer program of EDSR."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from cabm.engine.blocks import Block, Blocks, residual_chain
from cabm.engine.chains import Chain
from cabm.engine.ends import Ends
from cabm.engine.float_conv import FloatConv
from cabm.engine.float_rows import Layer
from cabm.engine.fused import kernel_for, packing
from cabm.engine.grid import Storage
from cabm.engine.linear_tail import CollapsedTail, Edge, collapse_at
from cabm.engine.packing import PackedConv, Row, bits_of, grid_at, skip_grid
from cabm.engine.tensors import through
from cabm.models.edsr import EDSR, ResidualBlock


class EdsrProgram:
    """A trained EDSR: blocks on bytes; head, last body convolution and collapsed tail in float.

    Args:
        model: of any quantized kind, with float head and tail.
        ends: how the float convolutions run.
    """

    def __init__(self, model: EDSR, ends: Ends) -> None:
        self._model = model
        self._kernel = kernel_for(model)
        packs = packing(self._kernel)
        self._convs = [
            tuple(PackedConv(conv, **packs) for conv in (block.conv1, block.conv2)) for block in model.body
        ]
        self._block = cache(self._make_block)  # hundreds of rows combine a few widths per block
        self._head = FloatConv(model.head.weight, model.head.bias, torch.float32)
        self._rows = ends.rows(_end(model)) if model.replicate_tail else None
        if self._rows is None:
            self._body_end = FloatConv(model.body_end.weight, model.body_end.bias, ends.dtype)
            tail = [*model.upsample, model.tail]
            self._tail = CollapsedTail(tail, model.factors, ends.dtype, replicate=model.replicate_tail)

    def plan(self, row: Row) -> Blocks | Chain:
        """Return the blocks at the bits of ``row``."""
        blocks = [
            self._block(index, tuple(bits_of(act, row) for act in _quantizers(block)))
            for index, block in enumerate(self._model.body)
        ]
        return Blocks(blocks) if self._kernel is None else residual_chain(self._kernel, blocks)

    def run(self, x: Tensor, plan: Blocks | Chain) -> Tensor:
        """Upscale one tile; see `cabm.engine.programs.Program`."""
        x = x - self._model.mean
        head = self._head(x)
        body = through(plan.run, head) if isinstance(plan, Chain) else plan.run(head)
        if self._rows is not None:
            return through(self._rows, body, addend=head)
        feature = self._body_end(body).float()
        return self._tail(feature.add_(head), x).add_(self._model.mean)

    def _make_block(self, index: int, bits: tuple[int, ...]) -> Block:
        block, (conv1, conv2) = self._model.body[index], self._convs[index]
        storages = (Storage.SHIFTED, Storage.POSITIVE, Storage.SIGNED)
        source, hidden, residual = map(grid_at, _quantizers(block), bits, storages)
        skip = skip_grid(block, bits[0])
        return Block(conv1.at(source), conv2.at(hidden), skip, residual, block.res_scale)


def _end(model: EDSR) -> list[Layer]:
    """Return the last convolution of the body, and the tail as one."""
    weight, bias = collapse_at([*model.upsample, model.tail], model.factors, Edge())
    bias = bias + model.mean.flatten().repeat_interleave(model.scale**2)
    ends = {"shuffle": model.scale, "replicate": True, "input_bytes": 2, "weight_bytes": 2}
    tail = Layer(weight.numpy(), bias.numpy(), **ends)
    return [Layer(model.body_end.weight.detach().numpy(), model.body_end.bias.detach().numpy()), tail]


def _quantizers(block: ResidualBlock) -> tuple[nn.Module, ...]:
    """Return the quantizers of the block's input, of the hidden layer and of the residual."""
    return block.act1, block.act2, block.act3
