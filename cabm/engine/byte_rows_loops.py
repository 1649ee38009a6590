"""The loop of `cabm.engine.byte_rows`: which row of which convolution comes next, and what it reads."""

from __future__ import annotations

import numpy as np
from numba.extending import intrinsic, overload, register_jitable

from cabm.engine import (
    byte_rows_codes,
    byte_rows_colours,
    byte_rows_ir,
    byte_winograd,
    byte_winograd_ir,
    emitter,
    row_order,
    value_range,
    vnni_ir,
    winograd,
    winograd_ir,
)
from cabm.engine.byte_rows_codes import (
    ALIGNED,
    BIASES,
    COLUMNS,
    INPUT_PARTS,
    LOWER_INPUT,
    LOWER_WEIGHT,
    MIDDLE,
    PLANAR,
    SCALES,
    WEIGHT_PARTS,
    WEIGHTS,
    take_row,
    unit_of,
)
from cabm.engine.byte_rows_colours import convolve_colours, write_colours
from cabm.engine.byte_rows_ir import ADDS, COLOUR_REGISTERS, COLOURS, MOST_PIXELS, PIXELS, REGISTERS
from cabm.engine.byte_winograd import band_bytes, convolve_band, encode_band
from cabm.engine.emitter import checksum, typed_call
from cabm.engine.row_order import (
    BAND,
    HEIGHT,
    INPUTS,
    KEPT,
    KERNEL,
    OUTPUTS,
    PLACE,
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


@intrinsic(prefer_literal=True)
def multiply(
    _, lanes, registers, table, offset, pixel, taps, quads, weights, columns, scales, biases, sums
):
    """Convolve adjacent pixels of a row; see `cabm.engine.byte_rows_ir.Product`."""
    integers = byte_rows_ir.PRODUCT_INTEGERS
    return typed_call(lanes, byte_rows_ir.Product, integers, byte_rows_ir.emit_product)


@intrinsic(prefer_literal=True)
def finish(_, lanes, registers, count, sums, addend, addend_pixel, slope, target, target_pixel):
    """Finish adjacent pixels of a row; see `cabm.engine.byte_rows_ir.End`."""
    return typed_call(lanes, byte_rows_ir.End, byte_rows_ir.END_INTEGERS, byte_rows_ir.emit_end)


def rows_loop(lanes: int) -> Loop:
    """Return the function to compile.

    Args:
        lanes: 32-bit numbers per register.
    """
    beyond = max(MOST_PIXELS, lanes * COLOUR_REGISTERS[lanes])
    direct = byte_rows_codes, byte_rows_colours, byte_rows_ir, emitter, row_order, value_range, vnni_ir
    emitters = checksum(*direct, byte_winograd, byte_winograd_ir, winograd, winograd_ir)
    band_scratch = winograd.scratch_bytes(lanes)[1]

    def run(layers, height, width, x, addend, base, out):
        """Run convolutions on an image.

        Args:
            layers: (S, FIELDS) int64.
            height, width: of the image.
            x: flat float32, channels last.
            addend: flat float32, added to the first result before its PixelShuffle; or empty.
            base: (rows, columns, channels) float32 in the shape of ``out``, added to it; or empty.
            out: (rows, columns, channels) float32, after the last PixelShuffle.
        """
        _ = emitters
        last = len(layers) - 1
        places, size, numbers, kept, taps, bands = _lay_out(layers, height, width, beyond)
        memory = _aligned(size)
        values = np.zeros(numbers, np.float32)
        colours = values[: COLOURS * (numbers // COLOURS)].reshape(COLOURS, -1)
        grids = np.zeros((last + 1, kept, 2), np.float32)
        table = np.zeros(3 * taps, np.int64)
        scratch = np.zeros(REGISTERS * MOST_PIXELS * lanes, np.float32)
        codes, tiles = _aligned(bands[0]), _aligned(bands[1])
        sums, grid = _aligned(min(bands[0], 1) * band_scratch), np.zeros(2, np.float32)
        read, made = np.zeros(last + 1, np.int64), np.zeros(last + 1, np.int64)
        while made[last] < places[last, HEIGHT]:
            s = next_layer(layers, places, read, made)
            if s < 0:
                count = width * layers[0, INPUTS]
                row = x[read[0] * count : (read[0] + 1) * count]
                take_row(lanes, row, layers, places, 0, read[0], memory, grids)
                read[0] += 1
                continue
            y, split = made[s], layers[s, SHUFFLE] if s < last else 1
            added = addend[y * width * layers[0, OUTPUTS] :] if s == 0 else addend[:0]
            if layers[s, BAND] > 1:
                encode_band(layers[s], places[s], y, memory, grids[s], codes, grid)
                convolve_band(
                    lanes, layers[s], places[s], split, y, added, grid, codes, tiles, sums, values
                )
            else:
                _find_rows(layers[s], places[s], y, memory, grids[s], table)
                if layers[s, PLANAR] != 0:
                    convolve_colours(lanes, layers[s], places[s], table, colours)
                    write_colours(colours, y, base, out)
                else:
                    _convolve_row(lanes, layers[s], places[s], split, table, added, scratch, values)
                    if s == last:
                        row = _row_of_part(values, layers[s], places[s], split, 0)
                        write_rows(row.reshape(-1, layers[s, OUTPUTS]), layers[s], y, base, out)
            lines = min(layers[s, BAND], places[s, HEIGHT] - y)
            for part in range(lines * split if s < last else 0):
                row = _row_of_part(values, layers[s], places[s], split, part)
                take_row(lanes, row, layers, places, s + 1, y * split + part, memory, grids)
                read[s + 1] += 1
            made[s] += lines

    return run


@register_jitable
def _aligned(size):
    """Return so many bytes of zeros from an address that is a multiple of `ALIGNED` on."""
    memory = np.zeros(size + ALIGNED, np.uint8)
    return memory[-np.int64(memory.ctypes.data) % ALIGNED :]


@register_jitable
def _lay_out(layers, height, width, beyond):
    """Return each convolution's place, and the sizes of working memory.

    Args:
        layers: (S, FIELDS) int64.
        height, width: of the image.
        beyond: pixels of space behind a row, which are computed for nothing.

    Returns:
        places: (S, PLACE + 1) int64, in bytes. A row of an input holds its parts one after another; a part
            its planes; and a plane, some channels of all pixels.
        size: bytes of all rows that are kept.
        numbers: the most numbers that a convolution computes at once.
        kept: the most rows that a convolution keeps.
        taps: the most rows that a kernel reads, counted for each part.
        bands: the most bytes of working memory for bands and for their tiles.
    """
    places = np.empty((len(layers), PLACE + 1), np.int64)
    size, numbers, kept, taps = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    bands = np.zeros(2, np.int64)
    for s in range(len(layers)):
        layer, reach = layers[s], layers[s, KERNEL] // 2
        unit = unit_of(layer)
        plane = ((width + 2 * reach + beyond) * unit + ALIGNED - 1) // ALIGNED * ALIGNED
        row = plane * (layer[INPUTS] // unit) * layer[INPUT_PARTS]
        if layer[BAND] > 1:
            row = 4 * width * layer[INPUTS]
            band, tiles = band_bytes(layer, width)
            bands[0], bands[1] = max(bands[0], band), max(bands[1], tiles)
        rows = kept_rows(layers, s)
        places[s] = np.array([height, width, size, row, rows, reach * unit, plane])
        size += row * rows
        numbers = max(numbers, (width + beyond) * layer[OUTPUTS] * layer[BAND])
        kept = max(kept, rows)
        taps = max(taps, layer[KERNEL] * (layer[INPUT_PARTS] + layer[WEIGHT_PARTS] - 1))
        height, width = height * layer[SHUFFLE], width * layer[SHUFFLE]
    return places, size, numbers, kept, taps, bands


@register_jitable
def _row_of_part(values, layer, place, split, part):
    """Return one of the rows that PixelShuffle makes of a convolution's row."""
    channels = layer[OUTPUTS] // split
    first = part * (place[WIDTH] + MOST_PIXELS) * channels
    return values[first : first + place[WIDTH] * channels]


@register_jitable
def _find_rows(layer, place, y, memory, grids, table):
    """Write the rows that the kernel reads for row ``y``; see `cabm.engine.byte_rows_ir.TAP`."""
    kernel, parts = layer[KERNEL], layer[INPUT_PARTS]
    start = np.int64(memory.ctypes.data)
    factors = table.view(np.float32)
    for i in range(kernel * (parts + layer[WEIGHT_PARTS] - 1)):
        again, here = i // kernel, row_of_tap(layer, place, y, i % kernel)
        # upper parts, then lower parts of inputs, then lower parts of weights with upper parts of inputs
        low = again == 1 and parts == 2
        table[3 * i] = start + row_at(place, max(here, 0)) + (place[ROW] // 2 if low else 0)
        scale, zero = grids[here % place[KEPT]]
        if low:
            scale, zero = scale / np.float32(LOWER_INPUT), np.float32(MIDDLE)
        elif again > 0:
            scale = scale / np.float32(LOWER_WEIGHT)
        table[3 * i + 1] = -np.int64(zero)
        factors[6 * i + 4] = scale if here >= 0 else np.float32(0)


def _convolve_row(lanes, layer, place, split, table, addend, scratch, values):
    """Convolve a row.

    Args:
        lanes: 32-bit numbers per register.
        layer, place: of the convolution and of its input.
        split: rows that PixelShuffle makes of it.
        table: from `_find_rows`.
        addend: flat float32 to add, or empty.
        scratch: float32.
        values: float32 to write: the rows, each with some pixels of space behind it.
    """
    raise NotImplementedError("only compiled loops call this")


@overload(_convolve_row, prefer_literal=True)
def _compile_row(lanes, layer, place, split, table, addend, scratch, values):
    size = lanes.literal_value
    most = tuple(PIXELS[size][registers] for registers in range(1, REGISTERS + 1))

    def convolve(lanes, layer, place, split, table, addend, scratch, values):
        inputs, outputs, width, kernel = layer[INPUTS], layer[OUTPUTS], place[WIDTH], layer[KERNEL]
        taps, quads = kernel * (layer[INPUT_PARTS] + layer[WEIGHT_PARTS] - 1), kernel * inputs // 4
        channels = outputs // split
        sums, start = np.int64(scratch.ctypes.data), np.int64(values.ctypes.data)
        for first in range(0, outputs, size):
            channel = first % channels
            if channel % (REGISTERS * size) != 0:
                continue  # done with the first of its group
            registers = min(REGISTERS, (channels - channel) // size)
            row = start + 4 * (first // channels * (width + MOST_PIXELS) * channels + channel)
            for begin in range(0, width, most[registers - 1]):
                multiply(
                    lanes,
                    registers,
                    np.int64(table.ctypes.data),
                    begin * inputs,
                    inputs,
                    taps,
                    quads,
                    layer[WEIGHTS] + 4 * first * taps * quads,
                    layer[COLUMNS] + 4 * first * taps,
                    layer[SCALES] + 4 * first,
                    layer[BIASES] + 4 * first,
                    sums,
                )
                finish(
                    lanes,
                    registers + (addend.size > 0) * ADDS,
                    min(most[registers - 1], width - begin),
                    sums,
                    np.int64(addend.ctypes.data) + 4 * (begin * outputs + first),
                    4 * outputs,
                    layer[SLOPE],
                    row + 4 * begin * channels,
                    4 * channels,
                )

    return convolve
