"""The bytes of `cabm.engine.byte_rows`: a convolution's numbers, and a row of its input as bytes."""

from __future__ import annotations

import numpy as np
from numba.extending import overload, register_jitable

from cabm.engine.row_order import (
    BAND,
    INPUTS,
    KEPT,
    KERNEL,
    MARGIN,
    OWN,
    PLACE,
    REPLICATE,
    ROW,
    WIDTH,
    row_at,
)
from cabm.engine.value_range import find_range

WEIGHTS, COLUMNS, SCALES, BIASES, INPUT_PARTS, WEIGHT_PARTS, PLANAR = range(OWN, FIELDS := OWN + 7)
"""Of a convolution: addresses, parts of inputs and of weights, and whether it computes three colours from
planes of four channels. `cabm.engine.row_order` has the first numbers."""

PLANE = PLACE
"""Of a convolution's input: bytes of a plane. The other numbers are those of `cabm.engine.row_order`."""

LOWER_INPUT, LOWER_WEIGHT, MIDDLE = 255, 254, 128
"""By how much the lower part's scale is smaller than the upper one's, of an input and of a weight; and the
zero of the lower part of an input."""

ALIGNED = 64


@register_jitable
def unit_of(layer):
    """Return how many bytes of a pixel lie together in what a convolution reads."""
    return 4 if layer[PLANAR] != 0 else layer[INPUTS]


def encode_row(lanes, values, layers, places, s, y, memory, grids):
    """Write a row of float32 as bytes, and its scale and zero.

    The scale is the row's own: the least of its numbers, or 0, becomes byte 0, and the greatest, 255.

    Args:
        lanes: 32-bit numbers per register.
        values: flat float32, channels last.
        layers, places: of all convolutions.
        s: the one that reads the row.
        y: the row.
        memory: bytes.
        grids: (S, rows, 2) float32, scales and zeros of the rows that are kept.
    """
    raise NotImplementedError("only compiled loops call this")


@overload(encode_row, prefer_literal=True)
def _compile_encoding(lanes, values, layers, places, s, y, memory, grids):
    def encode(lanes, values, layers, places, s, y, memory, grids):
        layer, place = layers[s], places[s]
        low, high = find_range(lanes, values)
        scale, zero = grid_of_range(low, high, 255)
        grids[s, y % place[KEPT], 0], grids[s, y % place[KEPT], 1] = scale, zero
        first = row_at(place, y)
        codes = memory[first : first + place[ROW]]
        for part in range(layer[INPUT_PARTS]):
            here = codes[part * (place[ROW] // layer[INPUT_PARTS]) :]
            fill = zero if part == 0 else np.float32(MIDDLE)
            _write_codes(values, scale, zero, part, layer, place, here)
            _frame_row(np.uint8(np.int32(fill)), layer, place, here)

    return encode


def take_row(lanes, values, layers, places, s, y, memory, grids):
    """Keep a row for the convolution that reads it; arguments as of `encode_row`.

    One that computes bands keeps float32, and the least and the greatest number in place of scale and zero.
    """
    raise NotImplementedError("only compiled loops call this")


@overload(take_row, prefer_literal=True)
def _take_row(lanes, values, layers, places, s, y, memory, grids):
    def take(lanes, values, layers, places, s, y, memory, grids):
        if layers[s, BAND] == 1:
            encode_row(lanes, values, layers, places, s, y, memory, grids)
            return
        place = places[s]
        first = row_at(place, y)
        target = memory[first : first + place[ROW]].view(np.float32)
        for i in range(values.size):
            target[i] = values[i]
        low, high = find_range(lanes, values)
        grids[s, y % place[KEPT], 0], grids[s, y % place[KEPT], 1] = low, high

    return take


@register_jitable
def grid_of_range(low, high, most):
    """Return scale and zero of codes 0..most for ``low``, at most 0, to ``high``, at least 0."""
    scale = (high - low) / np.float32(most)
    scale = scale if scale > np.float32(0) else np.float32(1)
    return scale, np.float32(np.int32(np.float32(0.5) - low / scale))


@register_jitable
def to_codes(values, scale, zero, most, target):
    """Write numbers as codes 0..most."""
    inverse, shift, highest = np.float32(1) / scale, zero + np.float32(0.5), np.float32(most)
    for i in range(values.size):
        code = values[i] * inverse + shift
        target[i] = np.int32(min(max(code, np.float32(0)), highest))


@register_jitable
def _write_codes(values, scale, zero, part, layer, place, codes):
    """Write the upper or the lower part of a row's numbers as bytes, to planes if the layer reads those."""
    planar = layer[PLANAR] != 0
    target = codes[place[MARGIN] : place[MARGIN] + values.size]
    if planar:
        target = np.empty(values.size, np.uint8)
    inverse, shift, half = np.float32(1) / scale, zero + np.float32(0.5), np.float32(0.5)
    if part == 0:
        to_codes(values, scale, zero, 255, target)
    else:
        finer, middle = inverse * np.float32(LOWER_INPUT), np.float32(MIDDLE) + half
        for i in range(values.size):
            code = values[i] * inverse + shift
            upper = np.float32(np.int32(min(max(code, np.float32(0)), np.float32(255)))) - zero
            code = (values[i] - scale * upper) * finer + middle
            target[i] = np.int32(min(max(code, np.float32(0)), np.float32(255)))
    if planar:
        planes = layer[INPUTS] // 4
        source, there = target.view(np.int32), codes[: planes * place[PLANE]].view(np.int32)
        for plane in range(planes):
            row = there[(plane * place[PLANE] + place[MARGIN]) // 4 :]
            for pixel in range(place[WIDTH]):
                row[pixel] = source[pixel * planes + plane]


@register_jitable
def _frame_row(zero, layer, place, codes):
    """Write what the kernel reads to the left and to the right of a row."""
    unit, reach = unit_of(layer), layer[KERNEL] // 2
    for plane in range(layer[INPUTS] // unit):
        left = plane * place[PLANE] + place[MARGIN]
        right = left + (place[WIDTH] - 1) * unit
        for pixel in range(1, reach + 1):
            for c in range(unit):
                codes[left - pixel * unit + c] = codes[left + c] if layer[REPLICATE] != 0 else zero
                codes[right + pixel * unit + c] = codes[right + c] if layer[REPLICATE] != 0 else zero
