"""The 1x1 convolution of an image in fixed point, for processors that multiply pairs of 16-bit numbers.

Each row has a scale of its own, or several: one for each part of `PART` channels that a step writes. Sums
are exact for a part, and in float32 from there on. Rounding is finer than that of bfloat16 for all numbers
above a 32nd of the row's largest.

A row's scales, float32, lie where the pixel before the row would be, each at the start of its part.
"""

from __future__ import annotations

import numpy as np
from numba.extending import intrinsic, overload

from cabm.engine import fixed_pointwise_ir
from cabm.engine.arrays import groups_of
from cabm.engine.emitter import typed_call
from cabm.engine.finishing import finish
from cabm.engine.fixed_pointwise_ir import MOST, MOST_WEIGHT, PART, PIXELS, REGISTERS
from cabm.engine.value_range import find_range


def pack(weight: np.ndarray, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights for (O,I), in groups of up to REGISTERS, and their scales.

    A group of g channels is (I / 2, g, 2) int16. Scales are float32 (O,).
    """
    scales = np.abs(weight).max(axis=1) / np.float32(MOST_WEIGHT)
    scales = np.where(scales > 0, scales, np.float32(1))
    codes = np.rint(weight / scales[:, None]).astype(np.int16)
    packed = [
        group.reshape(len(group), -1, 2).swapaxes(0, 1).reshape(-1)
        for group in groups_of(codes, REGISTERS[lanes] * lanes)
    ]
    return np.concatenate(packed), scales


@intrinsic(prefer_literal=True)
def _multiply(_, lanes, registers, source, pixel, scales, parts, weights, factors, biases, sums):
    """Convolve adjacent pixels; see `cabm.engine.fixed_pointwise_ir.Product`."""
    integers = fixed_pointwise_ir.PRODUCT_INTEGERS
    return typed_call(lanes, fixed_pointwise_ir.Product, integers, fixed_pointwise_ir.emit_product)


@intrinsic(prefer_literal=True)
def _fix(_, lanes, count, registers, source, inverse, target, pixel):
    """Round adjacent pixels; see `cabm.engine.fixed_pointwise_ir.Fix`."""
    integers = fixed_pointwise_ir.FIX_INTEGERS
    return typed_call(lanes, fixed_pointwise_ir.Fix, integers, fixed_pointwise_ir.emit_fix)


def fix_rows(lanes, memory, source, target, channels, height, width):
    """Write rows of float32 in fixed point.

    Args:
        lanes: 32-bit numbers per register.
        memory: flat float32 that holds both images.
        source, target: the first number's place in ``memory``, in bytes from its start, and the bytes from
            one pixel and from one row to the next; pixels of the source lie side by side.
        channels: of the source, full registers.
        height, width: of the rows.
    """
    raise NotImplementedError("only compiled loops call this")


@overload(fix_rows, prefer_literal=True)
def _fix_rows(lanes, memory, source, target, channels, height, width):
    size = lanes.literal_value

    def loop(lanes, memory, source, target, channels, height, width):
        inverse = np.empty(1, np.float32)
        start = np.int64(memory.ctypes.data)
        for y in range(height):
            first, to = source[0] + y * source[2], target[0] + y * target[2]
            low, high = find_range(lanes, memory[first // 4 : first // 4 + width * channels])
            scale = max(high, -low) / np.float32(MOST)
            scale = scale if scale > np.float32(0) else np.float32(1)
            inverse[0] = np.float32(1) / scale
            for part in range(0, channels, PART):
                memory[(to - target[1] + 2 * part) // 4] = scale
            there = np.int64(inverse.ctypes.data)
            _fix(lanes, width, channels // size, start + first, there, start + to, target[1])

    return loop


def run_fixed(lanes, layer, image, ends, scratch):
    """Convolve all pixels of an image in fixed point; see `cabm.engine.pointwise.run_pointwise`.

    The scales of the weights are in the place of the factors.
    """
    raise NotImplementedError("only compiled loops call this")


@overload(run_fixed, prefer_literal=True)
def _run_fixed(lanes, layer, image, ends, scratch):
    size = lanes.literal_value
    most = REGISTERS[size]

    def loop(lanes, layer, image, ends, scratch):
        weights, biases, inputs, outputs = layer
        source, pixel, row, height, width = image
        factors = ends[1]
        for y in range(height):
            for x in range(0, width, PIXELS):
                count = min(PIXELS, width - x)
                for first in range(0, outputs, most * size):
                    registers = min(most, (outputs - first) // size)
                    _multiply(
                        lanes,
                        registers,
                        source + y * row + x * pixel,
                        pixel,
                        source + y * row - pixel,
                        inputs // PART,
                        weights + 2 * first * inputs,
                        factors + 4 * first,
                        biases + 4 * first,
                        scratch,
                    )
                    finish(lanes, registers, count, scratch, 4 * size * registers, first, y, x, ends)

    return loop
