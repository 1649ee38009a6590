"""Winograd on bytes, for layers whose inputs and weights have at most `BITS` bits.

The algorithm is that of `cabm.engine.winograd`, with other products.

`vpmaddubsw` multiplies unsigned by signed bytes and adds pairs in 16 bits: twice the products of
`vpmaddwd`. It is exact as long as everything fits:

- Weights are at most 7, so 4 times the transformed kernels are at most 9 * 7 = 63: signed bytes.
- Transformed inputs are sums of two codes less two others, at one position (`SUM`) the sum of four. Codes
  of either sign are at most 7, so these numbers are -28..28; the byte of code 0 drops out, as 4 * 128 is
  0 in a byte. Codes without a sign are at most 15: -30..30, and 0..60 at `SUM`. Plus `SHIFT`, or nothing at
  `SUM` for codes without a sign, they are 0..62: unsigned bytes.
- Sums of 8 products are at most 8 * 62 * 63 = 31248: 16 bits. Then they are added in 32 bits.

The sums start from what the shift adds to them, negative; the packed weights carry these numbers.
"""

from __future__ import annotations

import torch
from numba.extending import intrinsic
from torch import Tensor

from cabm.engine import narrow_ir
from cabm.engine.emitter import typed_call
from cabm.engine.layer_numbers import NARROW_POSITIVE
from cabm.engine.narrow_ir import QUAD, SHIFT, SUM

BITS = 4


def pack(transformed: Tensor, group: int, products: int) -> Tensor:
    """Return the bytes of packed weights.

    Args:
        transformed: (O,I,POSITIONS) whole numbers in -63..63: 4 times the transformed kernels.
        group: output channels computed together.
        products: NARROW_SIGNED or NARROW_POSITIVE.

    Returns:
        uint8 (O / group, POSITIONS, 4 * group + I * group): for each channel of the group the int32 that
        the sums start from, then int8 weights (I / QUAD, group, QUAD).
    """
    outputs, inputs, positions = transformed.shape
    shifts = torch.full((positions,), SHIFT)
    shifts[SUM] = 0 if products == NARROW_POSITIVE else SHIFT
    starts = -(transformed.sum(1) * shifts).view(outputs // group, group, positions).transpose(1, 2)
    weights = transformed.view(outputs // group, group, inputs // QUAD, QUAD, positions)
    weights = weights.permute(0, 4, 2, 1, 3).to(torch.int8).reshape(outputs // group, positions, -1)
    starts = starts.to(torch.int32).contiguous().view(torch.int8)
    return torch.cat([starts, weights], dim=-1).view(torch.uint8).contiguous()


@intrinsic(prefer_literal=True)
def transform_input(_, lanes, source, row, channels, shift, transformed):
    """Transform the input of one tile; see `cabm.engine.narrow_ir.Input`."""
    return typed_call(lanes, narrow_ir.Input, {"row", "channels", "shift"}, narrow_ir.emit_input)


@intrinsic(prefer_literal=True)
def multiply(_, lanes, count, transformed, chunks, weights, products):
    """Multiply adjacent tiles at one position; see `cabm.engine.narrow_ir.Product`."""
    return typed_call(lanes, narrow_ir.Product, {"count", "chunks"}, narrow_ir.emit_product)
