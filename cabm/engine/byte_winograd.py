"""Bands of rows of `cabm.engine.byte_rows` by integer Winograd: half the time of direct sums of bytes.

`cabm.engine.winograd` needs one scale for all rows of a tile. So inputs are kept as float32, and the rows
that a band reads become codes of a common scale and zero when it is computed. They may have 8.8 bits, which
cost no time, because products are of 16 bits.
"""

from __future__ import annotations

import numpy as np
from numba.extending import intrinsic, overload, register_jitable

from cabm.engine import byte_winograd_ir
from cabm.engine.byte_rows_codes import BIASES, COLUMNS, SCALES, WEIGHTS, grid_of_range, to_codes
from cabm.engine.byte_rows_ir import MOST_PIXELS as BEYOND
from cabm.engine.emitter import typed_call
from cabm.engine.row_order import HEIGHT, INPUTS, KEPT, OUTPUTS, ROW, SLOPE, WIDTH, row_at
from cabm.engine.winograd import multiply_strip, transform_halves, transform_output
from cabm.engine.winograd_ir import CHUNK, PIXELS, POSITIONS, REGISTERS, STRIP

READS = PIXELS + 2
"""Rows that a band reads."""

MOST, MOST_SUM = 481, (2**31 - 1) // (64 * 9 * 127)
"""Codes are 0..MOST, or 0..MOST_SUM / channels if that is less: transformed, they fit 16 bits, and the sums
gathered by `cabm.engine.winograd` stay below 2^31."""


@intrinsic(prefer_literal=True)
def _finish(
    _,
    lanes,
    adds,
    count,
    sums,
    minus,
    scale,
    columns,
    scales,
    biases,
    addend,
    addend_pixel,
    slope,
    target,
    target_pixel,
):
    """Finish adjacent pixels of a row; see `cabm.engine.byte_winograd_ir.End`."""
    integers = byte_winograd_ir.INTEGERS
    return typed_call(lanes, byte_winograd_ir.End, integers, byte_winograd_ir.emit_end)


@register_jitable
def band_bytes(layer, width):
    """Return the bytes of working memory for a band of rows of ``width``, and for its tiles."""
    tiles = -(-width // PIXELS)
    strips = -(-tiles // STRIP)
    band = 2 * READS * (PIXELS * tiles + 2) * layer[INPUTS]
    return (band + 63) // 64 * 64, strips * 2 * POSITIONS * STRIP * layer[INPUTS]


@register_jitable
def encode_band(layer, place, y, memory, ranges, codes, grid):
    """Write the rows that a band reads as codes, framed, and their scale and zero.

    Args:
        layer, place: of the convolution and of its input.
        y: the band's first row.
        memory: bytes, with the rows that are kept as float32.
        ranges: (rows, 2) float32, the least and the greatest numbers of these.
        codes: bytes to write, (READS, pixels, channels) int16.
        grid: (2,) float32 to write.
    """
    inputs, width, height = layer[INPUTS], place[WIDTH], place[HEIGHT]
    low, high = np.float32(0), np.float32(0)
    for row in range(max(y - 1, 0), min(y + PIXELS + 1, height)):
        low = min(low, ranges[row % place[KEPT], 0])
        high = max(high, ranges[row % place[KEPT], 1])
    most = min(MOST, MOST_SUM // inputs)
    scale, zero = grid_of_range(low, high, most)
    grid[0], grid[1] = scale, zero
    size = (-(-width // PIXELS) * PIXELS + 2) * inputs
    fill, halves = np.int16(np.int32(zero)), codes.view(np.int16)
    for line in range(READS):
        row, target = y - 1 + line, halves[line * size : (line + 1) * size]
        if row < 0 or row >= height:
            target[:] = fill
            continue
        first = row_at(place, row)
        values = memory[first : first + place[ROW]].view(np.float32)
        target[:inputs] = fill
        to_codes(values, scale, zero, most, target[inputs : inputs + values.size])
        target[inputs + values.size :] = fill


def convolve_band(lanes, layer, place, split, y, addend, grid, codes, tiles, scratch, values):
    """Convolve a band of up to four rows.

    Args:
        lanes: 32-bit numbers per register.
        layer, place: of the convolution and of its input.
        split: rows that PixelShuffle makes of each.
        y: the first row.
        addend: flat float32 to add, or empty.
        grid: (2,) float32, scale and zero of ``codes``.
        codes: the numbers that it reads, from `encode_band`.
        tiles, scratch: bytes of working memory.
        values: float32 to write: rows, by row and part, each with some pixels of space behind it.
    """
    raise NotImplementedError("only compiled loops call this")


@overload(convolve_band, prefer_literal=True)
def _convolve_band(lanes, layer, place, split, y, addend, grid, codes, tiles, scratch, values):
    group = REGISTERS * lanes.literal_value

    def loop(lanes, layer, place, split, y, addend, grid, codes, tiles, scratch, values):
        inputs, outputs, width = layer[INPUTS], layer[OUTPUTS], place[WIDTH]
        across = -(-width // PIXELS)
        row, strip_bytes = 2 * (PIXELS * across + 2) * inputs, 2 * POSITIONS * STRIP * inputs
        source, transformed = np.int64(codes.ctypes.data), np.int64(tiles.ctypes.data)
        for tile in range(across):
            there = transformed + tile // STRIP * strip_bytes + 2 * CHUNK * (tile % STRIP)
            transform_halves(lanes, source + 2 * PIXELS * tile * inputs, row, inputs, there)
        starts = np.zeros(group, np.int32)
        products = np.int64(scratch.ctypes.data)
        sums = products + POSITIONS * STRIP * group * 4
        channels = outputs // split
        lines = min(PIXELS, place[HEIGHT] - y)
        for first in range(0, outputs, group):
            part, channel = first // channels, first % channels
            kernel = layer[WEIGHTS] + 2 * inputs * POSITIONS * first
            for strip in range(-(-across // STRIP)):
                x, count = PIXELS * STRIP * strip, min(STRIP, across - STRIP * strip)
                here = transformed + strip * strip_bytes
                multiply_strip(lanes, count, here, inputs, inputs, kernel, products)
                for i in range(count):
                    there = sums + 4 * PIXELS * group * i
                    from_zero = np.int64(starts.ctypes.data)
                    transform_output(lanes, products + 4 * group * i, from_zero, 0, there)
                for line in range(lines):
                    pixel = (line * split + part) * (width + BEYOND) + x
                    _finish(
                        lanes,
                        min(addend.size, 1),
                        min(PIXELS * count, width - x),
                        sums + 4 * PIXELS * STRIP * group * line,
                        -np.int64(grid[1]),
                        np.int64(grid.ctypes.data),
                        layer[COLUMNS] + 4 * first,
                        layer[SCALES] + 4 * first,
                        layer[BIASES] + 4 * first,
                        np.int64(addend.ctypes.data) + 4 * ((line * width + x) * outputs + first),
                        4 * outputs,
                        layer[SLOPE],
                        np.int64(values.ctypes.data) + 4 * (pixel * channels + channel),
                        4 * channels,
                    )

    return loop
