"""EDSR's program."""

from __future__ import annotations

import numpy as np
import torch

from cabm.engine.blocks import BlockParts
from cabm.engine.building.head import head_conv
from cabm.engine.ends import Ends
from cabm.engine.float_conv import FloatConv
from cabm.engine.float_rows import Layer
from cabm.engine.fused import kernel_for, packing
from cabm.engine.grid import Storage
from cabm.engine.linear_tail import CollapsedTail, Edge, collapse_at
from cabm.engine.modules import array, pack_conv, quantizer, skip_quantizer
from cabm.engine.programs import Tail
from cabm.engine.programs.residual import ResidualProgram
from cabm.engine.tensors import as_array, as_tensor
from cabm.models.edsr import EDSR, ResidualBlock


def program(model: EDSR, ends: Ends) -> ResidualProgram:
    """Return blocks on bytes; head, last body convolution and collapsed tail in float.

    Args:
        model: of any quantized kind, with float head and tail.
        ends: how the float convolutions run.
    """
    kernel = kernel_for(model)
    rows = ends.rows(_end(model)) if model.replicate_tail else None
    return ResidualProgram(
        kernel=kernel,
        mean=array(model.mean).ravel(),
        head=head_conv(model.head),
        blocks=tuple(_block(block, packing(kernel)) for block in model.body),
        rows=rows,
        tail=_LinearTail(model, ends.dtype) if rows is None else None,
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


def _end(model: EDSR) -> list[Layer]:
    """Return the last convolution of the body, and the tail as one."""
    weight, bias = collapse_at([*model.upsample, model.tail], model.factors, Edge())
    bias = bias + model.mean.flatten().repeat_interleave(model.scale**2)
    tail = Layer(
        array(weight), array(bias), shuffle=model.scale, replicate=True, input_bytes=2, weight_bytes=2
    )
    return [Layer(array(model.body_end.weight), array(model.body_end.bias)), tail]


class _LinearTail(Tail):
    """The last convolution of the body and the collapsed tail, one after the other."""

    def __init__(self, model: EDSR, dtype: torch.dtype) -> None:
        self._mean = model.mean
        self._body_end = FloatConv(model.body_end.weight, model.body_end.bias, dtype)
        convs = [*model.upsample, model.tail]
        self._tail = CollapsedTail(convs, model.factors, dtype, replicate=model.replicate_tail)

    @torch.inference_mode()
    def __call__(self, hidden: np.ndarray, head: np.ndarray, x: np.ndarray) -> np.ndarray:
        """See `Tail`."""
        feature = self._body_end(as_tensor(hidden)).float().add_(as_tensor(head))
        return as_array(self._tail(feature, as_tensor(x)).add_(self._mean))
