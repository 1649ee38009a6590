"""The loop of `cabm.engine.float_winograd`."""

from __future__ import annotations

import numpy as np
from numba.extending import intrinsic, overload, register_jitable

from cabm.engine import emitter, float_winograd_ir, pointwise
from cabm.engine.emitter import checksum, typed_call
from cabm.engine.float_winograd_ir import POSITIONS, SIDE
from cabm.machine.compiled import Loop

STRIP = 24
"""Tiles transformed together."""

GROUP = 64
"""The most output channels computed together."""

APART = 64
"""Bytes between the numbers of two positions, which would share two sets of the cache otherwise."""


@intrinsic(prefer_literal=True)
def _transform_input(_, lanes, source, row, pixel, registers, transformed, position):
    """Transform the input of one tile; see `cabm.engine.float_winograd_ir.Input`."""
    numbers = {"row", "pixel", "registers", "position"}
    return typed_call(lanes, float_winograd_ir.Input, numbers, float_winograd_ir.emit_input)


@intrinsic(prefer_literal=True)
def _transform_output(_, lanes, outputs, products, position, registers, biases, slope, target, row, pixel):
    """Transform the products of one tile to pixels; see `cabm.engine.float_winograd_ir.Output`."""
    numbers = {"outputs", "position", "registers", "row", "pixel"}
    return typed_call(lanes, float_winograd_ir.Output, numbers, float_winograd_ir.emit_output)


@register_jitable
def _fill(line, x, start, pixel, block, factor, channels, padded, width):
    """Copy a row of ``width`` pixels from ``x`` into a line, each to ``padded`` numbers.

    Args:
        line, x: flat float32.
        start: of the row in ``x``.
        pixel: numbers from one coarse pixel to the next, before PixelShuffle(factor).
        block: of the fine row in a coarse pixel: its first number.
        factor: fine pixels per coarse pixel, side by side in memory.
        channels, padded: numbers of a fine pixel, and in the line.
        width: in fine pixels.
    """
    for column in range(width):
        here = start + column // factor * pixel + block + column % factor * channels
        there = column * padded
        for c in range(channels):
            line[there + c] = x[here + c]


@register_jitable
def _replicate(line, reach, padded, width):
    """Copy the outermost of ``width`` pixels, which begin ``reach`` pixels into the line, beyond them."""
    for column in range(reach):
        right = reach + width + column
        for c in range(padded):
            line[column * padded + c] = line[reach * padded + c]
            line[right * padded + c] = line[(reach + width - 1) * padded + c]


def convolution_loop(lanes: int) -> Loop:
    """Return the function to compile.

    Args:
        lanes: float32 per register.
    """

    emitters = checksum(emitter, float_winograd_ir, pointwise)

    def convolve(
        x, row, pixel, factor, channels, height, width, first, weights, biases, slope, size, replicate, out
    ):
        """Convolve an image.

        Args:
            x: flat float32, the image before PixelShuffle(factor): in a coarse pixel, the channels of a
                fine pixel lie together, fine pixels row by row.
            row, pixel: numbers from one row, and from one pixel, of ``x`` to the next.
            factor: of the shuffle; 1: none.
            channels, height, width: of the image after the shuffle.
            first: row of the image where ``out`` starts.
            weights, biases: flat float32, packed, and padded as ``out``.
            slope: (1,) float32, factor on negative results.
            size: pixels of a tile of results along an axis: 4 for 3x3, 2 for 5x5.
            replicate: whether the outermost pixels lie beyond the border, instead of zeros.
            out: (rows, columns, outputs) float32; rows and columns rounded up to multiples of ``size``,
                output channels to one of ``lanes``.
        """
        _ = emitters
        padded = (channels + lanes - 1) // lanes * lanes
        reach = (SIDE - size) // 2
        columns = out.shape[1] + SIDE - size
        lines = np.zeros((SIDE, columns * padded), np.float32)
        memory = np.empty(POSITIONS * (STRIP * (padded + GROUP) + APART // 2) + GROUP + 16, np.float32)
        for top in range(0, out.shape[0], size):
            for line in range(SIDE):
                y = first + top + line - reach
                if replicate:
                    y = min(max(y, 0), height - 1)
                if y < 0 or y >= height:
                    lines[line] = 0
                else:
                    block = y % factor * factor * channels
                    inner = lines[line, reach * padded :]
                    _fill(inner, x, y // factor * row, pixel, block, factor, channels, padded, width)
                    if replicate:
                        _replicate(lines[line], reach, padded, width)
            _convolve_row(
                lanes, lines, columns, padded, weights, biases, slope, size, out[top : top + size], memory
            )

    return convolve


def _convolve_row(lanes, lines, columns, padded, weights, biases, slope, size, out, memory):
    """Convolve one row of tiles from its six lines."""
    raise NotImplementedError("only compiled loops call this")


@overload(_convolve_row, prefer_literal=True)
def _compile_row(lanes, lines, columns, padded, weights, biases, slope, size, out, memory):
    most, width = pointwise.REGISTERS[lanes.literal_value], lanes.literal_value

    def convolve_row(lanes, lines, columns, padded, weights, biases, slope, size, out, memory):
        base = (np.int64(memory.ctypes.data) + 63) // 64 * 64
        source, kernel = np.int64(lines.ctypes.data), np.int64(weights.ctypes.data)
        first_bias, target = np.int64(biases.ctypes.data), np.int64(out.ctypes.data)
        position = 4 * padded * STRIP + APART
        products = base + POSITIONS * position
        zeros = products + POSITIONS * (4 * STRIP * GROUP + APART)
        memory[(zeros - np.int64(memory.ctypes.data)) // 4 :] = 0
        outputs = out.shape[2]
        tiles, pixel = out.shape[1] // size, 4 * outputs
        tile = 0
        for left in range(-(-tiles // STRIP), 0, -1):
            count = -(-(tiles - tile) // left)  # as even as possible
            for i in range(count):
                here = source + 4 * padded * size * (tile + i)
                there = base + 4 * padded * i
                _transform_input(
                    lanes, here, 4 * padded * columns, 4 * padded, padded // width, there, position
                )
            for first in range(0, outputs, most * width):
                registers = min(most, (outputs - first) // width)
                group = 4 * registers * width
                for p in range(POSITIONS):
                    weight = kernel + 4 * padded * (p * outputs + first)
                    for i in range(0, count, pointwise.PIXELS):
                        pointwise.sum_pixels(
                            lanes,
                            registers,
                            min(pointwise.PIXELS, count - i),
                            base + position * p + 4 * padded * i,
                            4 * padded,
                            padded,
                            weight,
                            zeros,
                            products + (group * STRIP + APART) * p + group * i,
                        )
                for i in range(count):
                    _transform_output(
                        lanes,
                        size,
                        products + group * i,
                        group * STRIP + APART,
                        registers,
                        first_bias + 4 * first,
                        np.int64(slope.ctypes.data),
                        target + pixel * size * (tile + i) + 4 * first,
                        pixel * out.shape[1],
                        pixel,
                    )
            tile += count

    return convolve_row
