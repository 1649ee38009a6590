"""The loop of `cabm.engine.tap_sums`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic, register_jitable

from cabm.engine import emitter, pointwise
from cabm.engine.emitter import Emitter, checksum, typed_call
from cabm.machine.compiled import Loop


class Addition(NamedTuple):
    """Operands of `emit_addition`.

    Attributes:
        count: number of pixels, at least 1.
        registers: of each pixel's numbers, at least 1.
        source: (count, registers * lanes) float32.
        target: float32 to which the first pixel's numbers are added.
        pixel: bytes from one pixel to the next there. Their numbers may overlap.
    """

    count: ir.Value
    registers: ir.Value
    source: ir.Value
    target: ir.Value
    pixel: ir.Value


def emit_addition(emit: Emitter, operands: Addition) -> None:
    """Emit the addition of pixels' numbers to others in memory, one pixel after the other."""
    size = 4 * emit.lanes

    def add_pixel(_, source, target):
        def add(_, source, here):
            total = emit.builder.fadd(emit.load(here, emit.singles), emit.load(source, emit.singles))
            emit.store(total, here)
            return emit.at(source, size), emit.at(here, size)

        source = emit.loop(operands.registers, (source, target), add)[0]
        return source, emit.at(target, operands.pixel)

    emit.loop(operands.count, (operands.source, operands.target), add_pixel)


@intrinsic(prefer_literal=True)
def _add(_, lanes, count, registers, source, target, pixel):
    """Add pixels' numbers to others; see `Addition`."""
    return typed_call(lanes, Addition, {"count", "registers", "pixel"}, emit_addition)


@register_jitable
def _add_row(sums, first, count, size, out):
    """Add a row's sums to the rows of results that they are part of, and set them to 0.

    Args:
        sums: flat float32, by column, by row of results, and by channel.
        first, count: the first of these rows in ``out``, and their number; those outside do not count.
        size: numbers of a column.
        out: (rows, columns, O) float32.
    """
    rows, columns, outputs = out.shape
    for number in range(count):
        y = first + number
        if y >= 0 and y < rows:
            line = out[y].reshape(-1)
            for x in range(columns):
                here, there = np.uint64(x * size + number * outputs), np.uint64(x * outputs)
                for c in range(np.uint64(outputs)):
                    line[there + c] += sums[here + c]


def taps_loop(lanes: int) -> Loop:
    """Return the function to compile.

    Args:
        lanes: float32 per register.
    """
    emitters = checksum(emitter, pointwise)
    most, block = pointwise.REGISTERS[lanes], pointwise.PIXELS

    def convolve(x, row, pixel, height, width, inputs, factor, weights, biases, size, first, out):
        """Convolve an image.

        Args:
            x: address of the image before PixelShuffle(factor), float32: in a coarse pixel, the channels of
                a fine pixel lie together, fine pixels row by row.
            row, pixel: bytes from one row, and from one pixel, of ``x`` to the next.
            height, width: of ``x``.
            inputs: channels of a fine pixel.
            factor: of the shuffle; 1: none.
            weights, biases, size: fields of `cabm.engine.tap_sums.TapConv`.
            first: fine row where ``out`` starts.
            out: (rows, width * factor, O) float32 to write, contiguous.
        """
        _ = emitters
        outputs, reach = out.shape[2], size // 2
        column = size * outputs
        total = (size * column + lanes - 1) // lanes
        sums = np.zeros((width * factor + size - 1) * column + lanes, np.float32)
        inner = sums[reach * column :]
        products = np.empty(block * most * lanes, np.float32)
        nothing = np.zeros(most * lanes, np.float32)
        kernel, results = np.int64(weights.ctypes.data), np.int64(sums.ctypes.data)
        scratch, zeros = np.int64(products.ctypes.data), np.int64(nothing.ctypes.data)
        flat = out.reshape(-1)
        for i in range(len(flat)):
            flat[i] = biases[i % outputs]
        for y in range(max(first - reach, 0), min(first + out.shape[0] + reach, height * factor)):
            for fine in range(factor):
                source = x + y // factor * row + 4 * (y % factor * factor + fine) * inputs
                for begin in range(0, total, most):
                    registers = min(most, total - begin)
                    done = 0
                    for left in range(-(-width // block), 0, -1):
                        count = -(-(width - done) // left)  # as even as possible
                        pointwise.sum_pixels(
                            lanes,
                            registers,
                            count,
                            source + done * pixel,
                            pixel,
                            inputs,
                            kernel + 4 * begin * lanes * inputs,
                            zeros,
                            scratch,
                        )
                        there = results + 4 * ((done * factor + fine) * column + begin * lanes)
                        _add(lanes, count, registers, scratch, there, 4 * factor * column)
                        done += count
            _add_row(inner, y - reach - first, size, column, out)
            for i in range(len(sums)):
                sums[i] = 0

    return convolve
