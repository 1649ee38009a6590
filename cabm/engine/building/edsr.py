"""EDSR's program."""

from __future__ import annotations

from cabm.engine.blocks import BlockParts
from cabm.engine.building.head import head_conv
from cabm.engine.building.tails import TorchTail
from cabm.engine.ends import Ends
from cabm.engine.float_conv import FloatConv
from cabm.engine.float_rows import Layer
from cabm.engine.fused import kernel_for, packing
from cabm.engine.grid import Storage
from cabm.engine.linear_tail import CollapsedTail, Edge, collapse_at
from cabm.engine.modules import array, pack_conv, quantizer, skip_quantizer
from cabm.engine.programs.residual import ResidualProgram
from cabm.models.edsr import EDSR, ResidualBlock


def program(model: EDSR, ends: Ends) -> ResidualProgram:
    """Return blocks on bytes; head, last body convolution and collapsed tail in float.

    Args:
        model: of any quantized kind, with float head and tail.
        ends: how the float convolutions run.
    """
    kernel = kernel_for(model)
    rows = ends.rows(_end(model)) if model.replicate_tail else None
    tail = None if rows is not None else _torch_tail(model, ends)
    return ResidualProgram(
        kernel=kernel,
        mean=array(model.mean).ravel(),
        head=head_conv(model.head),
        blocks=tuple(_block(block, packing(kernel)) for block in model.body),
        rows=rows,
        tail=tail,
    )


def _block(block: ResidualBlock, packs: dict) -> BlockParts:
    reads, hidden = quantizer(block.act1), quantizer(block.act2)
    return BlockParts(
        conv1=pack_conv(block.conv1, reads, Storage.SHIFTED, **packs),
        conv2=pack_conv(block.conv2, hidden, Storage.POSITIVE, **packs),
        reads=reads,
        hidden=hidden,
        storage=Storage.POSITIVE,
        skip=skip_quantizer(block),
        residual=quantizer(block.act3),
        res_scale=block.res_scale,
    )


def _torch_tail(model: EDSR, ends: Ends) -> TorchTail:
    convs = [*model.upsample, model.tail]
    tail = CollapsedTail(convs, model.factors, ends.dtype, replicate=model.replicate_tail)
    body_end = FloatConv(model.body_end.weight, model.body_end.bias, ends.dtype)
    return TorchTail(tail, body_end, model.mean)


def _end(model: EDSR) -> list[Layer]:
    """Return the last convolution of the body, and the tail as one."""
    weight, bias = collapse_at([*model.upsample, model.tail], model.factors, Edge())
    bias = bias + model.mean.flatten().repeat_interleave(model.scale**2)
    tail = Layer(
        array(weight), array(bias), shuffle=model.scale, replicate=True, input_bytes=2, weight_bytes=2
    )
    return [Layer(array(model.body_end.weight), array(model.body_end.bias)), tail]
