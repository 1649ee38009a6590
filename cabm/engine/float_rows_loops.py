"""The loop of `cabm.engine.float_rows`: which row of which convolution comes next, and what it reads."""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic, overload, register_jitable

from cabm.engine import amx, amx_ir, emitter, float_rows_ir, row_order
from cabm.engine.amx import configure, release
from cabm.engine.amx_ir import DEPTH, LANES, SUMS_PIXEL
from cabm.engine.emitter import checksum, typed_call
from cabm.engine.float_rows_ir import ADDS, BLOCK, NARROW
from cabm.engine.row_order import (
    FIRST,
    HEIGHT,
    INPUTS,
    KEPT,
    KERNEL,
    MARGIN,
    OUTPUTS,
    OWN,
    PLACE,
    REPLICATE,
    ROW,
    SHUFFLE,
    SLOPE,
    WIDTH,
    kept_rows,
    next_layer,
    row_at,
    row_of_tap,
    write_rows,
)
from cabm.machine.compiled import Loop

WEIGHTS, BIASES, PARTS = range(OWN, OWN + 3)
"""Of a convolution: addresses, and the parts of a number, which count as inputs. The first ones are in
`cabm.engine.row_order`."""

MOST_TAPS = 64
"""The most rows that a kernel reads, counted for each part."""

NUMBERS = DEPTH // 2
"""Numbers of a tile register's row."""


@intrinsic(prefer_literal=True)
def multiply_tiles(_, lanes, shape, rows, offset, pixel, taps, depths, weights, biases, sums):
    """Convolve adjacent pixels of a row; see `cabm.engine.float_rows_ir.Product`."""
    integers = float_rows_ir.PRODUCT_INTEGERS
    return typed_call(lanes, float_rows_ir.Product, integers, float_rows_ir.emit_product)


@intrinsic(prefer_literal=True)
def finish_tiles(_, lanes, shape, count, sums, addend, addend_pixel, slope, target, target_pixel):
    """Finish adjacent pixels of a row; see `cabm.engine.float_rows_ir.End`."""
    return typed_call(lanes, float_rows_ir.End, float_rows_ir.END_INTEGERS, float_rows_ir.emit_end)


def rows_loop() -> Loop:
    """Return the function to compile."""
    emitters = checksum(amx, amx_ir, emitter, float_rows_ir, row_order)

    def run(layers, height, width, x, addend, base, out):
        """Run convolutions on an image.

        Args:
            layers: (S, PARTS + 1) int64.
            height, width: of the image.
            x: flat float32, channels last.
            addend: flat float32, added to the first result before its PixelShuffle; or empty.
            base: (rows, columns, channels) float32 in the shape of ``out``, added to it; or empty.
            out: (rows, columns, channels) float32, after the last PixelShuffle.
        """
        _ = emitters
        last = len(layers) - 1
        places, size = _lay_out(layers, height, width)
        memory = np.zeros(size + DEPTH, np.uint16)
        memory = memory[(-np.int64(memory.ctypes.data) % DEPTH) // 2 :]
        line = np.empty((out.shape[1] // layers[last, SHUFFLE], layers[last, OUTPUTS]), np.float32)
        scratch = np.empty(BLOCK * SUMS_PIXEL // 4 + 16, np.float32)
        rows = np.empty(MOST_TAPS, np.int64)
        read, made = np.zeros(last + 1, np.int64), np.zeros(last + 1, np.int64)
        configure(LANES, np.int64(scratch.ctypes.data))
        while made[last] < places[last, HEIGHT]:
            s = next_layer(layers, places, read, made)
            if s < 0:
                _read_row(x, layers[0], places[0], read[0], memory)
                read[0] += 1
                continue
            y = made[s]
            _find_rows(layers[s], places[s], y, memory, rows)
            added = addend[y * width * layers[0, OUTPUTS] :] if s == 0 else addend[:0]
            if s < last:
                factor = layers[s, SHUFFLE]
                _convolve_row(LANES, layers[s], places[s], rows, added, scratch, memory, places[s + 1], y)
                for fine in range(factor * y, factor * (y + 1)):
                    _extend_row(layers[s + 1], places[s + 1], fine, memory)
                read[s + 1] += factor
            else:
                _convolve_row(LANES, layers[s], places[s], rows, added, scratch, line, places[s], y)
                write_rows(line, layers[s], y, base, out)
            made[s] += 1
        release(LANES, np.int64(scratch.ctypes.data))

    return run


@register_jitable
def _lay_out(layers, height, width):
    """Return the place of each convolution's input, and the size of the memory in bfloat16.

    The memory starts with a row of zeros.
    """
    places = np.empty((len(layers), PLACE), np.int64)
    for s in range(len(layers)):
        reach, inputs = layers[s, KERNEL] // 2, layers[s, INPUTS]
        row = ((width + 2 * reach + BLOCK) * inputs + 2 * NUMBERS - 1) // NUMBERS * NUMBERS
        places[s] = np.array([height, width, 0, row, kept_rows(layers, s), reach * inputs])
        height, width = height * layers[s, SHUFFLE], width * layers[s, SHUFFLE]
    # not places[:, ROW].max(): to load code that refers to it, numba imports SciPy, which takes 0.3 s
    size = np.int64(0)
    for s in range(len(layers)):
        size = max(size, places[s, ROW])
    for s in range(len(layers)):
        places[s, FIRST] = size
        size += places[s, ROW] * places[s, KEPT]
    return places, size


@register_jitable
def _read_row(x, layer, place, y, memory):
    """Write a row of the image as bfloat16: the parts of a pixel's numbers after each other."""
    inputs, channels = layer[INPUTS], layer[INPUTS] // layer[PARTS]
    count, first = place[WIDTH] * channels, row_at(place, y) + place[MARGIN]
    target = memory[first : first + place[WIDTH] * inputs]
    source = x[y * count : (y + 1) * count]
    bits = source.view(np.uint32)
    if layer[PARTS] == 1:
        for i in range(count):
            target[i] = _nearest(bits[i])
    else:
        upper, lower = np.empty(count, np.uint32), np.empty(count, np.float32)
        values, rest = upper.view(np.float32), lower.view(np.uint32)
        for i in range(count):
            upper[i] = _nearest(bits[i]) << np.uint32(16)
            lower[i] = source[i] - values[i]
            there = i // channels * inputs + i % channels
            target[there] = upper[i] >> np.uint32(16)
            target[there + channels] = _nearest(rest[i])
    _extend_row(layer, place, y, memory)


@register_jitable
def _nearest(bits):
    """Round a float32, given by its bits, to bfloat16, to nearest even."""
    return (bits + ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)) >> np.uint32(16)


@register_jitable
def _extend_row(layer, place, y, memory):
    """Replicate the outermost pixels of a row beyond the border, where the convolution asks for it."""
    if layer[REPLICATE] == 0:
        return
    inputs, reach = layer[INPUTS], layer[KERNEL] // 2
    left = row_at(place, y) + place[MARGIN]
    right = left + (place[WIDTH] - 1) * inputs
    for pixel in range(1, reach + 1):
        for c in range(inputs):
            memory[left - pixel * inputs + c] = memory[left + c]
            memory[right + pixel * inputs + c] = memory[right + c]


@register_jitable
def _find_rows(layer, place, y, memory, rows):
    """Write the addresses of the rows that the kernel reads for row ``y``."""
    start = np.int64(memory.ctypes.data)
    for tap in range(layer[KERNEL]):
        here = row_of_tap(layer, place, y, tap)
        for again in range(layer[PARTS]):
            rows[again * layer[KERNEL] + tap] = start + (2 * row_at(place, here) if here >= 0 else 0)


def _convolve_row(lanes, layer, place, rows, addend, scratch, target, target_place, y):
    """Convolve row ``y``.

    Args:
        lanes: `LANES`.
        layer, place: of the convolution and of its input.
        rows: from `_find_rows`.
        addend: flat float32 to add, or empty.
        scratch: float32.
        target: bfloat16 memory, whose ``target_place`` the results go to, through PixelShuffle; or
            (columns, outputs) float32, which they go to as they are.
    """
    raise NotImplementedError("only compiled loops call this")


@overload(_convolve_row, prefer_literal=True)
def _compile_row(lanes, layer, place, rows, addend, scratch, target, target_place, y):
    narrow = target.dtype == types.uint16

    def convolve(lanes, layer, place, rows, addend, scratch, target, target_place, y):
        inputs, outputs, width = layer[INPUTS], layer[OUTPUTS], place[WIDTH]
        depths, taps = -(-layer[KERNEL] * inputs // NUMBERS), layer[KERNEL] * layer[PARTS]
        sums, start = np.int64(scratch.ctypes.data), np.int64(target.ctypes.data)
        table, added = np.int64(rows.ctypes.data), np.int64(addend.ctypes.data)
        factor = layer[SHUFFLE]
        channels = outputs // factor  # of a fine row, in all fine pixels of a coarse one
        added_pixel = 4 * outputs
        for first in range(0, outputs, 2 * LANES):
            halves = min(2, (outputs - first) // LANES)
            for begin in range(0, width, BLOCK // halves):
                count = min(BLOCK // halves, width - begin)
                tiles = -(-count // LANES)
                tiles += tiles == 3
                multiply_tiles(
                    lanes,
                    8 * tiles + halves,
                    table,
                    2 * begin * inputs,
                    2 * inputs,
                    taps,
                    depths,
                    layer[WEIGHTS] + 2 * first * taps * depths * NUMBERS,
                    layer[BIASES] + 4 * first,
                    sums,
                )
                # both halves at once, unless PixelShuffle moves them to different rows
                step = LANES if narrow and channels % (2 * LANES) != 0 else halves * LANES
                shape = step // LANES + narrow * NARROW + (addend.size > 0) * ADDS
                for channel in range(first, first + halves * LANES, step):
                    if narrow:
                        # the row is framed as its reader asks; see row_at
                        fine = row_at(target_place, y * factor + channel // channels)
                        pixel = 2 * channels
                        there = start + 2 * (fine + target_place[MARGIN]) + channel % channels * 2
                    else:
                        there, pixel = start + 4 * channel, 4 * outputs
                    finish_tiles(
                        lanes,
                        shape,
                        count,
                        sums + 4 * (channel - first),
                        added + added_pixel * begin + 4 * channel,
                        added_pixel,
                        layer[SLOPE],
                        there + begin * pixel,
                        pixel,
                    )

    return convolve
