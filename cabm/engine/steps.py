"""The layers of a network part as steps, which numba compiles to one call.

All steps of a tile run in one call: between layers no operator is launched, no memory is allocated and no
lock is taken, so small tiles are as fast per pixel as large ones. How a layer is convolved depends on the
form (`cabm.engine.forms`).

Steps of a group take turns row by row, each some rows behind those whose results it reads. So these are
still in a core's cache, whatever the size of the image.

Images are channels last and framed: (height + 2, width + 2, channels), height and width rounded up to even
numbers. Code 0 around an image of bytes takes the place of zero padding, so convolutions test no border.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from numba.extending import register_jitable

from cabm.engine import (
    emitter,
    epilogue,
    finishing,
    fixed_pointwise,
    fixed_pointwise_ir,
    layer_numbers,
    value_range,
)
from cabm.engine.emitter import checksum
from cabm.engine.epilogue import HALF_UNIT
from cabm.engine.fixed_pointwise import fix_rows
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
    FIX,
    FIXED,
    FLOAT_BYTES,
    FLOATS,
    FLOATS_AT,
    FOLLOWING,
    HIGH,
    INPUTS,
    INVERSE,
    KEPT,
    KIND,
    LAG,
    LOW,
    OUTPUTS,
    RESULT,
    ROUND,
    ROUNDED,
    ROUNDING,
    SOURCE,
    STARTS,
    TARGET,
    WEIGHTS,
)
from cabm.machine.compiled import Loop

SLACK = 64
"""Pixels behind an image that a form may read."""


@register_jitable
def _nothing(lanes, scratch):
    """Do nothing."""


def step_loop(
    run_layer: Loop,
    run_pointwise: Loop,
    run_compact: Loop,
    lanes: int,
    band: int,
    scratch_bytes: tuple[int, int],
    modules: Sequence[ModuleType],
    *,
    spills: bool = False,
    prepare: Loop = _nothing,
    end: Loop = _nothing,
) -> Loop:
    """Return the function to compile.

    Args:
        run_layer: convolves all pixels of an image; its arguments are (lanes, layer, image, ends, scratch).
            ``layer`` holds the addresses of weights and starts, and the numbers of input and output
            channels; ``image`` the address of the frame's upper left byte, the bytes from one row to the
            next, height and width; ``ends`` are explained in `cabm.engine.finishing.finish`.
        run_pointwise: the same for the pixels of a float32 image by a 1x1 kernel; ``layer`` holds biases in
            place of the starts, ``image`` also the bytes from one pixel to the next.
        run_compact: the same for an image of bfloat16 or in fixed point, the one that the form has.
        lanes: 32-bit numbers per register.
        band: rows that a step of a group computes before the next step does.
        scratch_bytes: of the layer's working memory: per channel, and besides.
        modules: with the code that emits a layer.
        spills: whether ``run_layer`` also writes what lies between the rows of images.
        prepare, end: called before the first step and after the last one, with lanes and scratch.
    """
    # What differs between forms stays in run_steps: numba gives nested functions of all forms the same
    # name, and code that is loaded for one of them would run in the others.
    fixed = fixed_pointwise, fixed_pointwise_ir, value_range
    emitters = checksum(emitter, epilogue, finishing, layer_numbers, *fixed, *modules)
    per_channel, besides = scratch_bytes

    def run_steps(steps, numbers, images, x, out):
        """Run S steps on a tile.

        Args:
            steps: (S, FIELDS) int64; images are given by their number, memory by its address. A
                convolution reads image SOURCE with its INPUTS channels and makes OUTPUTS channels: sums by
                WEIGHTS, packed for the form, plus int32 STARTS, float32 FACTORS and BIASES for each, then
                its EPILOGUE, which writes and adds TARGET, FOLLOWING, FLOATS (from channel FLOATS_AT on)
                and ADDEND (from ADDEND_AT on). A 1x1 convolution reads an image of floats; its STARTS are
                float32 biases, its FACTORS the scales of weights in fixed point. A step with a LAG belongs
                to the group of the step before it.
            numbers: (S, NUMBERS) float32; see `cabm.engine.layer_numbers.Epilogue`.
            images: (M, 3) int64, CHANNELS, FILL and KEPT.
            x: (height, width, channels) float32, the input.
            out: flat float32, channels last, the result.
        """
        _ = emitters
        height, width = x.shape[:2]
        places, size, widest = _lay_out(images, height, width, band)
        memory = np.empty((size + per_channel * widest + besides + 64) // 4, np.float32)
        start = np.int64(memory.ctypes.data)
        aligned = (start + 63) // 64 * 64
        codes = memory.view(np.uint8)
        _clear(images, places, codes[aligned - start :])
        for m in range(len(images)):
            places[m, 0] += np.int64(out.ctypes.data) if images[m, FILL] == RESULT else aligned
        prepare(lanes, aligned + size)
        begin = 0
        while begin < len(steps):
            last = begin
            while last + 1 < len(steps) and steps[last + 1, LAG] > 0:
                last += 1
            most = height if last == begin else band
            for turn in range(-(-height // most) + steps[last, LAG]):
                for s in range(begin, last + 1):
                    step, y = steps[s], (turn - steps[s, LAG]) * most
                    if not 0 <= y < height:
                        continue
                    lines = min(most, height - y)
                    if step[KIND] == ENCODE:
                        _encode(
                            x[y : y + lines], numbers[s], codes, _place(places[step[TARGET]], 0, y), start
                        )
                        continue
                    if step[KIND] == COPY:
                        there = _place(places[step[FLOATS]], 0, y)
                        if images[step[FLOATS], FILL] == ROUNDED:
                            _round(x[y : y + lines], memory.view(np.uint16), there, start)
                        else:
                            _copy(x[y : y + lines], memory, there, start)
                        continue
                    first, pixel, row = _place(places[step[SOURCE]], 0, y)
                    if step[KIND] == FIX:
                        there = _place(places[step[FLOATS]], 2 * step[FLOATS_AT], y)
                        source = first - start, pixel, row
                        to = there[0] - start, there[1], there[2]
                        fix_rows(lanes, memory, source, to, images[step[SOURCE], CHANNELS], lines, width)
                        continue
                    layer = step[WEIGHTS], step[STARTS], step[INPUTS], step[OUTPUTS]
                    ends = _ends(step, np.int64(numbers[s].ctypes.data), places, y)
                    if step[KIND] == CONVOLVE:
                        image = first - row - pixel, row, lines, width
                        run_layer(lanes, layer, image, ends, aligned + size)
                        if spills:
                            for m in (step[TARGET], step[FOLLOWING]):
                                at = _place(places[m], 0, y)[0] - start
                                _clear_between_rows(codes[at:], images[m, FILL], places[m], lines, width)
                        continue
                    image = first, pixel, row, lines, width
                    if is_compact(images[step[SOURCE], FILL]):
                        run_compact(lanes, layer, image, ends, aligned + size)
                    else:
                        run_pointwise(lanes, layer, image, ends, aligned + size)
            begin = last + 1
        end(lanes, aligned + size)

    return run_steps


@register_jitable
def is_compact(fill):
    """Return whether an image's numbers have 16 bits."""
    return fill in (ROUNDED, FIXED)


@register_jitable
def _lay_out(images, height, width, band):
    """Return the places of images in memory, its size in bytes and the largest number of channels.

    A place holds: first pixel inside the frame, bytes per pixel, bytes per row, start, size, rows that are
    kept: row y takes the place of row y - kept.
    """
    places = np.zeros((len(images), 6), np.int64)
    columns = width + 2 + width % 2
    size, widest = 0, 0
    for m in range(len(images)):
        channels, fill = images[m, CHANNELS], images[m, FILL]
        widest = max(widest, channels)
        pixel = channels * (1 if fill >= 0 else 2 if is_compact(fill) else 4)
        if fill == RESULT:
            places[m] = np.array([0, pixel, width * pixel, 0, 0, height])
            continue
        whole = max(band, 2)
        kept = -(-height // whole) * whole
        if images[m, KEPT] > 0:
            kept = min(kept, band * images[m, KEPT])
        row, rows = columns * pixel, kept + 2
        places[m] = np.array([size + row + pixel, pixel, row, size, rows * row, kept])
        size += (rows * row + SLACK * pixel + 63) // 64 * 64
    return places, size, widest


@register_jitable
def _clear(images, places, codes):
    """Fill images of bytes, and those images of floats that start with zeros."""
    for m in range(len(images)):
        if images[m, FILL] >= 0 or images[m, FILL] == CLEARED or images[m, FILL] == ROUNDED:
            codes[places[m, 3] : places[m, 3] + places[m, 4]] = max(images[m, FILL], 0)


@register_jitable
def _clear_between_rows(codes, fill, place, height, width):
    """Fill the frame between the rows of an image of bytes, which starts with its first row."""
    if fill >= 0:
        for y in range(height):
            codes[y * place[2] + width * place[1] : (y + 1) * place[2]] = fill


@register_jitable
def _ends(step, numbers, places, y):
    """Return the operands of `cabm.engine.finishing.finish`, whose row 0 is row ``y`` of the images."""
    size = FLOAT_BYTES[step[EPILOGUE]]
    return (
        step[EPILOGUE],
        step[FACTORS],
        step[BIASES],
        numbers,
        _place(places[step[TARGET]], 0, y),
        _place(places[step[FOLLOWING]], 0, y),
        _place(places[step[FLOATS]], size * step[FLOATS_AT], y),
        _place(places[step[ADDEND]], size * step[ADDEND_AT], y),
    )


@register_jitable
def _place(place, offset, y):
    """Return an address, ``offset`` bytes behind row ``y``, and the bytes per pixel and per row."""
    return place[0] + offset + y % place[5] * place[2], place[1], place[2]


@register_jitable
def _encode(x, numbers, codes, place, start):
    """Write the codes of x, from the place on; further channels stay as they are."""
    magic, zero = np.float32(ROUND), np.int32(numbers[ROUNDING] - np.float32(ROUND))
    inverse, low, high = numbers[INVERSE], numbers[LOW], numbers[HIGH]
    for y in range(x.shape[0]):
        for column in range(x.shape[1]):
            source = x[y, column]
            first = place[0] - start + y * place[2] + column * place[1]
            target = codes[first : first + len(source)]
            for c in range(len(source)):
                code = min(max(source[c] * inverse, low), high)
                target[c] = np.int32((code + magic) - magic) + zero


@register_jitable
def _copy(x, memory, place, start):
    """Write x, from the place on; further channels stay as they are."""
    for y in range(x.shape[0]):
        for column in range(x.shape[1]):
            first = (place[0] - start + y * place[2] + column * place[1]) // 4
            memory[first : first + x.shape[2]] = x[y, column]


@register_jitable
def _round(x, memory, place, start):
    """Write x as bfloat16, from the place on; further channels stay as they are."""
    for y in range(x.shape[0]):
        for column in range(x.shape[1]):
            bits = x[y, column].view(np.uint32)
            first = (place[0] - start + y * place[2] + column * place[1]) // 2
            target = memory[first : first + len(bits)]
            for c in range(len(bits)):
                target[c] = (bits[c] + np.uint32(HALF_UNIT)) >> np.uint32(16)
