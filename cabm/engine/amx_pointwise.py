"""The 1x1 convolution of float32 images for processors with AMX: products of tiles of bfloat16.

Two bfloat16 numbers, the upper and the lower part, stand for a float32 number, to within 2^-17 of it. Three
of the four products of parts make a product; the fourth is smaller than that.
"""

from __future__ import annotations

import torch
from numba.extending import intrinsic, overload
from torch import Tensor
from torch.nn import functional as F

from cabm.engine import amx_pointwise_ir
from cabm.engine.amx import GROUP, configure, release
from cabm.engine.amx_ir import LANES, PIXELS
from cabm.engine.amx_pointwise_ir import DEPTH, PARTS
from cabm.engine.emitter import typed_call
from cabm.engine.finishing import finish

SCRATCH_PER_CHANNEL = 2 * PARTS * PIXELS
"""Bytes of the parts of PIXELS numbers."""


def pack(weight: Tensor) -> Tensor:
    """Return bfloat16 weights (O / 16, ceil(I / 32), 2, 16, 16, 2): the parts of (O,I); 16 divides O."""
    weight = F.pad(weight.detach().float(), (0, -weight.shape[1] % DEPTH))
    parts = []
    for _ in range(PARTS):
        parts.append(weight.bfloat16())
        weight = weight - parts[-1].float()
    tiles = torch.stack(parts).view(PARTS, -1, LANES, weight.shape[1] // DEPTH, DEPTH // 2, 2)
    return tiles.permute(1, 3, 0, 4, 2, 5).contiguous()


@intrinsic(prefer_literal=True)
def _divide(_, lanes, count, source, pixel, registers, parts, part):
    """Write the parts of adjacent pixels; see `cabm.engine.amx_pointwise_ir.Division`."""
    integers = amx_pointwise_ir.DIVISION_INTEGERS
    return typed_call(lanes, amx_pointwise_ir.Division, integers, amx_pointwise_ir.emit_division)


@intrinsic(prefer_literal=True)
def _multiply(_, lanes, halves, parts, part, depths, weights, biases, sums):
    """Multiply the parts of PIXELS pixels; see `cabm.engine.amx_pointwise_ir.Product`."""
    integers = amx_pointwise_ir.PRODUCT_INTEGERS
    return typed_call(lanes, amx_pointwise_ir.Product, integers, amx_pointwise_ir.emit_product)


def run_pointwise(lanes, layer, image, ends, scratch):
    """Convolve all pixels of an image of float32; see `cabm.engine.pointwise.run_pointwise`."""
    raise NotImplementedError("only compiled loops call this")


@overload(run_pointwise, prefer_literal=True)
def _run_pointwise(lanes, layer, image, ends, scratch):
    def loop(lanes, layer, image, ends, scratch):
        weights, biases, inputs, outputs, _ = layer
        source, pixel, row, height, width = image
        depths = -(-inputs // DEPTH)
        part = 2 * depths * DEPTH * PIXELS
        sums = scratch + PARTS * part
        configure(lanes, scratch)
        for y in range(height):
            for x in range(0, width, PIXELS):
                count = min(PIXELS, width - x)
                _divide(lanes, count, source + y * row + x * pixel, pixel, inputs // LANES, scratch, part)
                for first in range(0, outputs, GROUP):
                    halves = min(2, (outputs - first) // LANES)
                    kernel = weights + 2 * first * PARTS * depths * DEPTH
                    _multiply(lanes, halves, scratch, part, depths, kernel, biases + 4 * first, sums)
                    finish(lanes, halves, count, sums, 4 * GROUP, first, y, x, ends)
        release(lanes, scratch)

    return loop
