"""Convolutions one after another, row by row: which comes next, and where the rows of their inputs are.

Each convolution holds as many rows of its input as its kernel reads, and computes a row as soon as they are
there. So all numbers between two convolutions stay in the cache. The loops of `cabm.engine.float_rows` and
of `cabm.engine.byte_rows` share these functions.
"""

from __future__ import annotations

from numba.extending import register_jitable

KERNEL, INPUTS, OUTPUTS, SHUFFLE, REPLICATE, SLOPE, BAND, OWN = range(8)
"""Of a convolution: side, channels (outputs padded), the PixelShuffle after it, whether the outermost
pixels are replicated beyond the border instead of zeros, the address of its slope, and how many rows it
computes at once. A loop's own numbers follow."""

HEIGHT, WIDTH, FIRST, ROW, KEPT, MARGIN = range(PLACE := 6)
"""Of a convolution's input: height and width; where its memory starts, numbers of a row, rows that are
kept, and numbers to the left of the first pixel."""


@register_jitable
def next_layer(layers, places, read, made):
    """Return the last convolution that can compute a band, or -1 if the first needs another row to read.

    Args:
        layers: (S, ...) int64, from `KERNEL` on.
        places: (S, PLACE) int64.
        read, made: (S,) rows that each convolution has been given, and rows that it has computed.
    """
    s = len(layers) - 1
    while s >= 0 and read[s] < min(made[s] + layers[s, KERNEL] // 2 + layers[s, BAND], places[s, HEIGHT]):
        s -= 1
    return s


@register_jitable
def kept_rows(layers, s):
    """Return how many rows a convolution keeps of its input.

    When others are made, at least one of those that it reads is missing.
    """
    made = layers[s - 1, SHUFFLE] * layers[s - 1, BAND] if s > 0 else 1
    return 2 * (layers[s, KERNEL] // 2) + layers[s, BAND] - 1 + made


@register_jitable
def row_at(place, y):
    """Return where row ``y`` of a convolution's input starts."""
    return place[FIRST] + y % place[KEPT] * place[ROW]


@register_jitable
def row_of_tap(layer, place, y, tap):
    """Return the row that a row of the kernel reads for row ``y``, or -1 beyond the border."""
    here = y + tap - layer[KERNEL] // 2
    if layer[REPLICATE] != 0:
        return min(max(here, 0), place[HEIGHT] - 1)
    return here if 0 <= here < place[HEIGHT] else -1


@register_jitable
def write_rows(line, layer, y, base, out):
    """Write a row of results through the last PixelShuffle.

    Args:
        line: (columns, outputs) float32.
        layer: of the last convolution.
        y: the row.
        base: (rows, columns, channels) float32 in the shape of ``out``, added to it; or empty.
        out: (rows, columns, channels) float32.
    """
    factor = layer[SHUFFLE]
    numbers = factor * out.shape[2]
    for row in range(factor):
        target = out[y * factor + row].reshape(-1)
        for pixel in range(out.shape[1] // factor):
            for i in range(numbers):
                target[pixel * numbers + i] = line[pixel, row * numbers + i]
        if base.size > 0:
            target += base[y * factor + row].reshape(-1)
