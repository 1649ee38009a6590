"""The matrix form: products of tiles of bytes, for processors with AMX.

Pixels are numbered row by row with the frame's columns, so that 32 of them follow each other in memory
however narrow the image is; what is computed for the frame means nothing.
"""

from __future__ import annotations

import numpy as np
from numba.extending import intrinsic, overload, register_jitable

from cabm.engine import amx_ir
from cabm.engine.amx_ir import DEPTH, LANES, PIXELS, PRODUCTS
from cabm.engine.arrays import with_margin
from cabm.engine.emitter import typed_call
from cabm.engine.finishing import ENDS, ends_at, finish
from cabm.engine.layer_numbers import WRITE_FLOATS

GROUP = 2 * LANES
SUMS = 4 * PIXELS * GROUP
"""Bytes of the sums of adjacent pixels."""

SCRATCH = 2 * SUMS
"""Bytes of working memory of a layer."""


def pack(codes: np.ndarray) -> np.ndarray:
    """Return int8 weights (O / 16, 3, ceil(3 I / 64), 16, 16, 4) for whole numbers (O,I,3,3)."""
    outputs, inputs = codes.shape[:2]
    rows = codes.astype(np.int8).transpose(0, 2, 3, 1).reshape(outputs, 3, 3 * inputs)
    rows = with_margin(rows, 0, 0, -3 * inputs % DEPTH)
    tiles = rows.reshape(outputs // LANES, LANES, 3, -1, DEPTH // 4, 4)
    return np.ascontiguousarray(tiles.transpose(0, 2, 3, 4, 1, 5))


@intrinsic(prefer_literal=True)
def configure(_, lanes, memory):
    """Set the shapes of the tile registers; see `cabm.engine.amx_ir.Configuration`."""
    return typed_call(lanes, amx_ir.Configuration, set(), amx_ir.emit_configuration)


@intrinsic(prefer_literal=True)
def release(_, lanes, memory):
    """Reset the tile registers."""
    return typed_call(lanes, amx_ir.Configuration, set(), amx_ir.emit_release)


@register_jitable
def prepare(lanes, scratch):
    """Set the shapes before a tile's layers.

    This is a function, because numba's cache does not recognise an intrinsic in a closure again.
    """
    configure(LANES, scratch)


@register_jitable
def end(lanes, scratch):
    """Reset the tile registers behind a tile's layers."""
    release(LANES, scratch)


@intrinsic(prefer_literal=True)
def _multiply(_, lanes, halves, source, row, pixel, depths, weights, starts, sums):
    """Convolve adjacent pixels to a group of output channels; see `cabm.engine.amx_ir.Product`."""
    return typed_call(lanes, amx_ir.Product, amx_ir.INTEGERS, amx_ir.emit_product)


@intrinsic(prefer_literal=True)
def _multiply_and_finish(
    _,
    lanes,
    halves,
    source,
    row,
    pixel,
    depths,
    weights,
    starts,
    sums,
    registers,
    count,
    earlier,
    distance,
    ends,
):
    """Do the same, and finish the pixels before; see `cabm.engine.amx_ir.Both`."""
    return typed_call(lanes, amx_ir.Both, amx_ir.BOTH_INTEGERS, amx_ir.emit_both, packed=ENDS)


def run_layer(lanes, layer, image, ends, scratch):
    """Convolve all pixels of a framed byte image; see `cabm.engine.steps`.

    What lies between the rows of the images that are written is overwritten, too.
    """
    raise NotImplementedError("only compiled loops call this")


@overload(run_layer, prefer_literal=True)
def _run_layer(lanes, layer, image, ends, scratch):
    def loop(lanes, layer, image, ends, scratch):
        weights, starts, inputs, outputs = layer
        source, row, height, width = image
        pitch = row // inputs
        depths = -(-3 * inputs // DEPTH)
        last = (height - 1) * pitch + width
        count = PRODUCTS  # pixels to finish after each step of products
        while PIXELS // count > 3 * depths:
            count *= 2
        floats = ends[6]
        framed = not WRITE_FLOATS[ends[0]] or floats[2] == pitch * floats[1]
        sums, other = scratch, scratch + SUMS
        earlier = 0, 0, 0  # tiles of channels whose sums wait to be finished, their first channel and pixel
        for first in range(0, outputs, GROUP):
            halves = min(2, (outputs - first) // LANES)
            kernel = weights + first * 3 * depths * DEPTH
            for begin in range(0, last, PIXELS):
                pixels = source + begin * inputs
                if framed and halves == earlier[0] and earlier[2] + PIXELS <= last:
                    _multiply_and_finish(
                        lanes,
                        halves,
                        pixels,
                        row,
                        inputs,
                        depths,
                        kernel,
                        starts + 4 * first,
                        sums,
                        halves,
                        count,
                        other,
                        4 * GROUP,
                        ends_at(ends, earlier[1], 0, earlier[2]),
                    )
                else:
                    _finish_pixels(earlier, last, other, pitch, width, ends)
                    _multiply(lanes, halves, pixels, row, inputs, depths, kernel, starts + 4 * first, sums)
                earlier = halves, first, begin
                sums, other = other, sums
        _finish_pixels(earlier, last, other, pitch, width, ends)

    return loop


@register_jitable
def _finish_pixels(earlier, last, sums, pitch, width, ends):
    """Finish those pixels inside the image whose sums were stored; see `_run_layer`."""
    halves, first, place = earlier
    begin, end = place, min(place + PIXELS, last)
    while halves > 0 and place < end:
        y, x = place // pitch, place % pitch
        count = min(end - place, width - x)
        if count > 0:
            finish(LANES, halves, count, sums + 4 * GROUP * (place - begin), 4 * GROUP, first, y, x, ends)
        place += min(end - place, pitch - x)


def permitted() -> bool:
    """Ask the system to let this process use tile registers; return whether it does."""
    import ctypes
    import sys

    if sys.platform != "linux":
        return False
    # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) of x86-64
    return np.int64(ctypes.CDLL(None).syscall(158, 0x1023, 18)) == 0
