"""The layers of a network part as steps, which numba compiles to one call.

All steps of a tile run in one call: between layers no operator is launched, no memory is allocated and no
lock is taken, so small tiles are as fast per pixel as large ones. How a layer is convolved depends on the
form (`cabm.engine.forms`).

Images are channels last and framed: (height + 2, width + 2, channels), height and width rounded up to even
numbers. Code 0 around an image of bytes takes the place of zero padding, so convolutions test no border.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from numba.extending import register_jitable

from cabm.engine import emitter, epilogue, finishing, layer_numbers, pointwise
from cabm.engine.emitter import checksum
from cabm.engine.layer_numbers import (
    ADDEND,
    ADDEND_AT,
    BIASES,
    CHANNELS,
    CLEARED,
    CONVOLVE,
    COPY,
    ENCODE,
    EPILOGUE,
    FACTORS,
    FILL,
    FLOATS,
    FLOATS_AT,
    FOLLOWING,
    HIGH,
    INPUTS,
    INVERSE,
    KIND,
    LOW,
    OUTPUTS,
    PRODUCTS,
    RESULT,
    ROUND,
    ROUNDING,
    SOURCE,
    STARTS,
    TARGET,
    WEIGHTS,
)
from cabm.engine.pointwise import run_pointwise
from cabm.machine.compiled import Loop

SLACK = 64
"""Pixels behind an image that a form may read."""


def step_loop(
    run_layer: Loop, lanes: int, scratch_bytes: tuple[int, int], modules: Sequence[ModuleType]
) -> Loop:
    """Return the function to compile.

    Args:
        run_layer: convolves all pixels of an image; its arguments are (lanes, layer, image, ends, scratch).
            ``layer`` holds the addresses of weights and starts, the numbers of input and output channels,
            and PRODUCTS; ``image`` the address of the frame's upper left byte, the bytes from one row to
            the next, height and width; ``ends`` are explained in `cabm.engine.finishing.finish`.
        lanes: 32-bit numbers per register.
        scratch_bytes: of the layer's working memory: per channel, and besides.
        modules: with the code that emits a layer.
    """
    emitters = checksum(emitter, epilogue, finishing, layer_numbers, pointwise, *modules)
    per_channel, besides = scratch_bytes

    def run_steps(steps, numbers, images, height, width, x, out):
        """Run S steps on a tile.

        Args:
            steps: (S, FIELDS) int64; images are given by their number, memory by its address. A
                convolution reads image SOURCE with its INPUTS channels and makes OUTPUTS channels: sums by
                WEIGHTS, packed for the form, plus int32 STARTS, float32 FACTORS and BIASES for each, then
                its EPILOGUE, which writes and adds TARGET, FOLLOWING, FLOATS (from channel FLOATS_AT on)
                and ADDEND (from ADDEND_AT on). A 1x1 convolution reads an image of float32; its STARTS are
                float32 biases.
            numbers: (S, NUMBERS) float32; see `cabm.engine.layer_numbers.Epilogue`.
            images: (M, 2) int64, CHANNELS and FILL.
            height, width: in pixels.
            x, out: flat float32, channels last: the input and the result.
        """
        _ = emitters
        places, size, widest = _lay_out(images, height, width)
        memory = np.empty((size + per_channel * widest + besides + 64) // 4, np.float32)
        start = np.int64(memory.ctypes.data)
        aligned = (start + 63) // 64 * 64
        codes = memory.view(np.uint8)
        for m in range(len(images)):
            if images[m, FILL] >= 0 or images[m, FILL] == CLEARED:
                first = places[m, 3] + aligned - start
                codes[first : first + places[m, 4]] = max(images[m, FILL], 0)
            places[m, 0] += np.int64(out.ctypes.data) if images[m, FILL] == RESULT else aligned
        for s in range(len(steps)):
            step = steps[s]
            if step[KIND] == ENCODE:
                _encode(x, numbers[s], codes, places[step[TARGET]], start, height, width)
            elif step[KIND] == COPY:
                _copy(x, memory, places[step[FLOATS]], start, height, width)
            else:
                first, pixel, row = _place(places[step[SOURCE]], 0)
                layer = step[WEIGHTS], step[STARTS], step[INPUTS], step[OUTPUTS], step[PRODUCTS]
                ends = _ends(step, np.int64(numbers[s].ctypes.data), places)
                if step[KIND] == CONVOLVE:
                    run_layer(lanes, layer, (first - row - pixel, row, height, width), ends, aligned + size)
                else:
                    run_pointwise(lanes, layer, (first, pixel, row, height, width), ends, aligned + size)

    return run_steps


@register_jitable
def _lay_out(images, height, width):
    """Return the places of images in memory, its size in bytes and the largest number of channels.

    A place holds: first pixel inside the frame, bytes per pixel, bytes per row, start, size.
    """
    places = np.zeros((len(images), 5), np.int64)
    rows, columns = height + 2 + height % 2, width + 2 + width % 2
    size, widest = 0, 0
    for m in range(len(images)):
        channels, fill = images[m, CHANNELS], images[m, FILL]
        widest = max(widest, channels)
        pixel = channels if fill >= 0 else 4 * channels
        if fill == RESULT:
            places[m] = np.array([0, pixel, width * pixel, 0, 0])
            continue
        row = columns * pixel
        places[m] = np.array([size + row + pixel, pixel, row, size, rows * row])
        size += (rows * row + SLACK * pixel + 63) // 64 * 64
    return places, size, widest


@register_jitable
def _ends(step, numbers, places):
    """Return the operands of `cabm.engine.finishing.finish`."""
    return (
        step[EPILOGUE],
        step[FACTORS],
        step[BIASES],
        numbers,
        _place(places[step[TARGET]], 0),
        _place(places[step[FOLLOWING]], 0),
        _place(places[step[FLOATS]], 4 * step[FLOATS_AT]),
        _place(places[step[ADDEND]], 4 * step[ADDEND_AT]),
    )


@register_jitable
def _place(place, offset):
    """Return the address ``offset`` bytes behind the first pixel, and the bytes per pixel and per row."""
    return place[0] + offset, place[1], place[2]


@register_jitable
def _encode(x, numbers, codes, place, start, height, width):
    """Write the codes of x to an image of bytes; its further channels stay as they are."""
    channels = x.size // (height * width)
    magic, zero = np.float32(ROUND), np.int32(numbers[ROUNDING] - np.float32(ROUND))
    inverse, low, high = numbers[INVERSE], numbers[LOW], numbers[HIGH]
    for y in range(height):
        for column in range(width):
            source = x[(y * width + column) * channels : (y * width + column + 1) * channels]
            first = place[0] - start + y * place[2] + column * place[1]
            target = codes[first : first + channels]
            for c in range(channels):
                code = min(max(source[c] * inverse, low), high)
                target[c] = np.int32((code + magic) - magic) + zero


@register_jitable
def _copy(x, memory, place, start, height, width):
    """Copy x to an image of float32; its further channels stay as they are."""
    channels = x.size // (height * width)
    for y in range(height):
        for column in range(width):
            first = (place[0] - start + y * place[2] + column * place[1]) // 4
            source = x[(y * width + column) * channels : (y * width + column + 1) * channels]
            memory[first : first + channels] = source
