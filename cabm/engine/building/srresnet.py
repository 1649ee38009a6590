"""SRResNet's program."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from cabm.engine.active_tail import ActiveTail, tail_layers
from cabm.engine.blocks import BlockParts
from cabm.engine.building.head import head_conv
from cabm.engine.building.tails import TorchTail
from cabm.engine.ends import Ends
from cabm.engine.float_conv import FloatConv
from cabm.engine.float_rows import Layer
from cabm.engine.fused import kernel_for, packing
from cabm.engine.grid import Storage
from cabm.engine.modules import array, pack_conv, quantizer, skip_quantizer
from cabm.engine.programs.residual import ResidualProgram
from cabm.models.srresnet import ResidualBlock, SRResNet


def program(model: SRResNet, ends: Ends) -> ResidualProgram:
    """Return blocks on bytes; head, last body convolution and tail in float.

    Batch norms are part of the factors and biases that turn sums into values.

    Args:
        model: of any quantized kind, with float head and tail, not of the released graph.
        ends: how the float convolutions run.
    """
    slope, kernel = float(model.prelu.weight), kernel_for(model)
    nothing = np.zeros(model.head.out_channels, np.float32)
    # with AMX; others have no rows that read three channels
    head = ends.rows([Layer(array(model.head.weight), nothing, slope=slope, parts=2)])
    factors, biases = affine(model.body_end_bn)
    weight = model.body_end.weight * factors.view(-1, 1, 1, 1)
    slopes = [float(prelu.weight) for prelu in model.upsample_prelu]
    tail = [*model.upsample, model.tail], model.factors, slopes
    rows = ends.rows([Layer(array(weight), array(biases)), *tail_layers(*tail, first_bytes=2)])
    body_end = FloatConv(weight, biases, ends.dtype) if rows is None else None
    return ResidualProgram(
        kernel=kernel,
        mean=np.zeros(3, np.float32),
        head=head_conv(model.head, slope) if head is None else head,
        blocks=tuple(_block(block, slope, packing(kernel)) for block in model.body),
        rows=rows,
        tail=None if rows is not None else TorchTail(ActiveTail(*tail, ends.dtype), body_end),
    )


def _block(block: ResidualBlock, slope: float, packs: dict) -> BlockParts:
    reads, hidden = quantizer(block.act1), quantizer(block.act2)
    after1, after2 = (tuple(map(array, affine(norm))) for norm in (block.bn1, block.bn2))
    return BlockParts(
        conv1=pack_conv(block.conv1, reads, Storage.SHIFTED, after=after1, **packs),
        conv2=pack_conv(block.conv2, hidden, Storage.SHIFTED, after=after2, **packs),
        reads=reads,
        hidden=hidden,
        storage=Storage.SHIFTED,
        skip=skip_quantizer(block),
        slope=slope,
    )


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the factors and biases (C,) of a batch norm in evaluation mode."""
    factors = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
    return factors, norm.bias.detach() - norm.running_mean * factors
