"""The last convolution of `cabm.engine.byte_rows` where it makes three colours: pixels lie side by side."""

from __future__ import annotations

import numpy as np
from numba.extending import intrinsic, overload, register_jitable

from cabm.engine import byte_rows_ir
from cabm.engine.byte_rows_codes import (
    BIASES,
    COLUMNS,
    INPUT_PARTS,
    PLANE,
    SCALES,
    WEIGHT_PARTS,
    WEIGHTS,
)
from cabm.engine.byte_rows_ir import COLOUR_REGISTERS, COLOURS
from cabm.engine.emitter import typed_call
from cabm.engine.row_order import INPUTS, KERNEL, WIDTH


@intrinsic(prefer_literal=True)
def multiply_colours(
    _, lanes, table, taps, offset, plane, kernel, planes, weights, columns, scales, biases, sums, sums_row
):
    """Convolve adjacent pixels of a row to three colours; see `cabm.engine.byte_rows_ir.Colours`."""
    integers = byte_rows_ir.COLOUR_INTEGERS
    return typed_call(lanes, byte_rows_ir.Colours, integers, byte_rows_ir.emit_colours)


def convolve_colours(lanes, layer, place, table, values):
    """Convolve a row to three colours.

    Args:
        lanes, layer, place, table: as of `_convolve_row`.
        values: (COLOURS, pixels) float32 to write, with space behind the row.
    """
    raise NotImplementedError("only compiled loops call this")


@overload(convolve_colours, prefer_literal=True)
def _compile_colours(lanes, layer, place, table, values):
    pixels = lanes.literal_value * COLOUR_REGISTERS[lanes.literal_value]

    def convolve(lanes, layer, place, table, values):
        kernel, planes = layer[KERNEL], layer[INPUTS] // 4
        for begin in range(0, place[WIDTH], pixels):
            multiply_colours(
                lanes,
                np.int64(table.ctypes.data),
                kernel * (layer[INPUT_PARTS] + layer[WEIGHT_PARTS] - 1),
                4 * begin,
                place[PLANE],
                kernel,
                planes,
                layer[WEIGHTS],
                layer[COLUMNS],
                layer[SCALES],
                layer[BIASES],
                np.int64(values.ctypes.data) + 4 * begin,
                4 * values.shape[1],
            )

    return convolve


@register_jitable
def write_colours(values, y, base, out):
    """Write a row of three colours, (COLOURS, pixels) float32; see `cabm.engine.row_order.write_rows`."""
    for pixel in range(out.shape[1]):
        for colour in range(COLOURS):
            out[y, pixel, colour] = values[colour, pixel]
    if base.size > 0:
        out[y] += base[y]
