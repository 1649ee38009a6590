"""The direct form: sums of byte products, for VNNI and for NEON with dot products.

Numba compiles the loop over pixels below; `cabm.engine.vnni_ir` writes the innermost loop in LLVM's own
language.
"""

from __future__ import annotations

import numpy as np
from numba.extending import intrinsic, overload

from cabm.engine import vnni_ir
from cabm.engine.arrays import groups_of
from cabm.engine.emitter import typed_call
from cabm.engine.finishing import finish

SCRATCH = 4096
"""Bytes of working memory of a layer."""


def pack(codes: np.ndarray, lanes: int) -> np.ndarray:
    """Return int8 weights for whole numbers (O,I,3,3) in -127..127, in groups of up to four registers.

    A group of g output channels is (3, 3, I / 4, g, 4).
    """
    inputs, height, width = codes.shape[1:]
    parts = []
    for group in groups_of(codes.astype(np.int8), vnni_ir.REGISTERS * lanes):
        quads = group.reshape(len(group), inputs // 4, 4, height, width)
        parts.append(quads.transpose(3, 4, 1, 0, 2).reshape(-1))
    return np.concatenate(parts)


@intrinsic(prefer_literal=True)
def _convolve(_, lanes, registers, count, source, row, channels, weights, starts, sums):
    """Convolve adjacent pixels to a group of output channels; see `cabm.engine.vnni_ir.Operands`."""
    return typed_call(lanes, vnni_ir.Operands, vnni_ir.INTEGERS, vnni_ir.emit_convolution)


def run_layer(lanes, layer, image, ends, scratch):
    """Convolve all pixels of a framed byte image; see `cabm.engine.steps`."""
    raise NotImplementedError("only compiled loops call this")


@overload(run_layer, prefer_literal=True)
def _run_layer(lanes, layer, image, ends, scratch):
    size = lanes.literal_value
    pixels = vnni_ir.PIXELS[size]
    most = vnni_ir.REGISTERS

    def loop(lanes, layer, image, ends, scratch):
        weights, starts, inputs, outputs = layer
        source, row, height, width = image
        for first in range(0, outputs, most * size):
            registers = min(most, (outputs - first) // size)
            for y in range(height):
                x = 0
                for left in range(-(-width // pixels), 0, -1):
                    count = -(-(width - x) // left)  # as even as possible
                    _convolve(
                        lanes,
                        registers,
                        count,
                        source + y * row + x * inputs,
                        row,
                        inputs,
                        weights + first * 9 * inputs,
                        starts + 4 * first,
                        scratch,
                    )
                    finish(lanes, registers, count, scratch, 4 * size * registers, first, y, x, ends)
                    x += count

    return loop
