"""The integer program of SRResNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.engine.active_tail import active_tail, tail_layers
from cabm.engine.blocks import Block, Blocks, residual_chain
from cabm.engine.chains import Chain
from cabm.engine.ends import Ends
from cabm.engine.float_conv import FloatConv
from cabm.engine.float_rows import Layer
from cabm.engine.fused import kernel_for, packing
from cabm.engine.grid import Storage
from cabm.engine.packing import PackedConv, Row, bits_of, grid_of, skip_grid
from cabm.engine.tensors import through
from cabm.models.srresnet import SRResNet


class SRResNetProgram:
    """A trained SRResNet: blocks on bytes; head, last body convolution and tail in float.

    Batch norms are part of the factors and biases that turn sums into values.

    Args:
        model: of any quantized kind, with float head and tail, not of the released graph.
        ends: how the float convolutions run.
    """

    def __init__(self, model: SRResNet, ends: Ends) -> None:
        self._slope = float(model.prelu.weight)
        self._blocks = model.body
        self._kernel = kernel_for(model)
        packs = packing(self._kernel)
        self._convs = [
            tuple(
                PackedConv(conv, **packs, after=affine(norm))
                for conv, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2))
            )
            for block in model.body
        ]
        head, nothing = model.head.weight, torch.zeros(model.head.out_channels)
        first = Layer(head.detach().numpy(), nothing.numpy(), slope=self._slope, parts=2)
        self._head_rows = ends.rows([first])
        if self._head_rows is None:
            self._head = FloatConv(head, None, torch.float32)
        factors, biases = affine(model.body_end_bn)
        weight = model.body_end.weight.detach() * factors.view(-1, 1, 1, 1)
        end = Layer(weight.numpy(), biases.numpy())
        slopes = [float(prelu.weight) for prelu in model.upsample_prelu]
        tail = [*model.upsample, model.tail], model.factors, slopes
        self._rows = ends.rows([end, *tail_layers(*tail, first_bytes=2)])
        if self._rows is None:
            self._body_end = FloatConv(weight, biases, ends.dtype)
            self._tail = active_tail(*tail, ends.dtype)

    def plan(self, row: Row) -> Blocks | Chain:
        """Return the blocks at the bits of ``row``."""
        blocks = [
            Block(
                conv1=conv1.at(grid_of(block.act1, row, Storage.SHIFTED)),
                conv2=conv2.at(grid_of(block.act2, row, Storage.SHIFTED)),
                skip=skip_grid(block, bits_of(block.act1, row)),
                slope=self._slope,
            )
            for block, (conv1, conv2) in zip(self._blocks, self._convs, strict=True)
        ]
        return Blocks(blocks) if self._kernel is None else residual_chain(self._kernel, blocks)

    def run(self, x: Tensor, plan: Blocks | Chain) -> Tensor:
        """Upscale one tile; see `cabm.engine.programs.Program`."""
        if self._head_rows is None:
            head = F.leaky_relu(self._head(x), self._slope, inplace=True)
        else:
            head = through(self._head_rows, x)
        body = through(plan.run, head) if isinstance(plan, Chain) else plan.run(head)
        if self._rows is not None:
            return through(self._rows, body, addend=head)
        return self._tail(self._body_end(body).float().add_(head), x)


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the factors and biases (C,) of a batch norm in evaluation mode."""
    factors = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
    return factors, norm.bias.detach() - norm.running_mean * factors
