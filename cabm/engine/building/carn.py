"""CARN's program."""

from __future__ import annotations

import torch
from torch import nn

from cabm.engine.active_tail import ActiveTail, tail_layers
from cabm.engine.building.head import head_conv
from cabm.engine.building.tails import TorchTail
from cabm.engine.ends import Ends
from cabm.engine.float_conv import FloatConv
from cabm.engine.fused import FloatWeights, Kernel, kernel_for, packing
from cabm.engine.grid import Storage
from cabm.engine.layerwise import OnTensors
from cabm.engine.modules import array, pack_conv, quantizer
from cabm.engine.programs.carn import CarnBlock, CarnProgram
from cabm.models.carn import CARN, ResidualBlock


def program(model: CARN, ends: Ends) -> CarnProgram:
    """Return residual blocks on bytes; head, fusions and tail in float.

    Args:
        model: of any quantized kind, with float head and tail.
        ends: how the float convolutions run.
    """
    kernel, cascades = kernel_for(model), model.body.blocks
    tail = [*model.upsample, model.tail], model.factors, [0.0] * len(model.factors)
    output = {"gain": 255.0, "offset": model.mean}
    rows = ends.rows(tail_layers(*tail, **output))
    return CarnProgram(
        kernel=kernel,
        mean=array(model.mean).ravel(),
        head=head_conv(model.head),
        blocks=tuple(_block(block, packing(kernel)) for cascade in cascades for block in cascade.blocks),
        inner=tuple(_fusions(cascade.fusion, kernel) for cascade in cascades),
        outer=_fusions(model.body.fusion, kernel),
        rows=rows,
        tail=TorchTail(ActiveTail(*tail, ends.dtype, **output)) if rows is None else None,
    )


def _block(block: ResidualBlock, packs: dict) -> CarnBlock:
    reads, hidden = quantizer(block.act1), quantizer(block.act2)
    return CarnBlock(
        conv1=pack_conv(block.conv1, reads, reads.input_storage, **packs),
        conv2=pack_conv(block.conv2, hidden, Storage.POSITIVE, **packs),
        reads=reads,
        hidden=hidden,
    )


def _fusions(convs: nn.ModuleList, kernel: Kernel | None) -> tuple[FloatWeights | OnTensors, ...]:
    """Return the 1x1 convolutions of a cascade, each of which reads one image more than the one before."""
    if kernel is None:
        return tuple(OnTensors(FloatConv(conv.weight, conv.bias, torch.float32)) for conv in convs)
    return tuple(
        kernel.pack_floats(
            array(conv.weight)[:, :, 0, 0],
            array(conv.bias),
            [conv.out_channels] * (index + 2),
            compact=kernel.compact,
        )
        for index, conv in enumerate(convs)
    )
