"""The 1x1 convolution of an image of bfloat16 for processors with AMX: products of tiles.

Weights keep 16 bits: two bfloat16 numbers, the upper and the lower part, stand for one. Their rounding,
unlike that of what they multiply, is the same at every pixel. Sums are float32.
"""

from __future__ import annotations

import numpy as np
from numba.extending import intrinsic, overload

from cabm.engine import amx_pointwise_ir
from cabm.engine.amx import GROUP
from cabm.engine.amx_ir import LANES, PIXELS
from cabm.engine.amx_pointwise_ir import DEPTH, PARTS
from cabm.engine.bfloat16 import from_bfloat16, to_bfloat16
from cabm.engine.emitter import typed_call
from cabm.engine.finishing import finish


def pack(weight: np.ndarray) -> np.ndarray:
    """Return bfloat16 weights (O / 16, I / 32, PARTS, 16, 16, 2) for (O,I): their parts."""
    upper = to_bfloat16(weight)
    parts = np.stack([upper, to_bfloat16(weight - from_bfloat16(upper))])
    tiles = parts.reshape(PARTS, -1, LANES, weight.shape[1] // DEPTH, DEPTH // 2, 2)
    return np.ascontiguousarray(tiles.transpose(1, 3, 0, 4, 2, 5))


@intrinsic(prefer_literal=True)
def _multiply(_, lanes, halves, source, pixel, depths, weights, biases, sums):
    """Multiply PIXELS pixels; see `cabm.engine.amx_pointwise_ir.Product`."""
    return typed_call(
        lanes, amx_pointwise_ir.Product, amx_pointwise_ir.INTEGERS, amx_pointwise_ir.emit_product
    )


def run_rounded(lanes, layer, image, ends, scratch):
    """Convolve all pixels of an image of bfloat16; see `cabm.engine.pointwise.run_pointwise`."""
    raise NotImplementedError("only compiled loops call this")


@overload(run_rounded, prefer_literal=True)
def _run_rounded(lanes, layer, image, ends, scratch):
    def loop(lanes, layer, image, ends, scratch):
        weights, biases, inputs, outputs = layer
        source, pixel, row, height, width = image
        depths = inputs // DEPTH
        for y in range(height):
            for x in range(0, width, PIXELS):
                count = min(PIXELS, width - x)
                place = source + y * row + x * pixel
                for first in range(0, outputs, GROUP):
                    halves = min(2, (outputs - first) // LANES)
                    kernel = weights + 2 * PARTS * first * depths * DEPTH
                    _multiply(lanes, halves, place, pixel, depths, kernel, biases + 4 * first, scratch)
                    finish(lanes, halves, count, scratch, 4 * GROUP, first, y, x, ends)

    return loop
