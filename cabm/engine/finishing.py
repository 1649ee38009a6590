"""The end of a layer in numba's loops: the epilogue of adjacent pixels of one row."""

from __future__ import annotations

from numba.extending import intrinsic, overload, register_jitable

from cabm.engine import epilogue
from cabm.engine.emitter import typed_call
from cabm.engine.layer_numbers import FLOAT_BYTES

ENDS = len(epilogue.Row._fields) - epilogue.Row._fields.index("epilogue")
"""Operands of an epilogue that depend on the layer and the place."""


@intrinsic(prefer_literal=True)
def _finish_row(_, lanes, registers, count, sums, sums_pixel, ends):
    """Finish adjacent pixels; see `cabm.engine.epilogue.Row`, whose last operands are from `ends_at`."""
    return typed_call(lanes, epilogue.Row, epilogue.INTEGERS, epilogue.emit_row, packed=ENDS)


def finish(lanes, registers, count, sums, sums_pixel, first, y, x, ends):
    """Finish the sums of ``count`` pixels of row ``y`` from column ``x`` on.

    Args:
        lanes: 32-bit numbers per register.
        registers: of output channels, from channel ``first`` on.
        count: number of pixels.
        sums, sums_pixel: see `cabm.engine.epilogue.Row`.
        first: the first channel.
        y, x: the first pixel.
        ends: the epilogue; the addresses of factors, biases and numbers; and of the pixel at 0, 0 of four
            images (the codes that are written, those for the next convolution, floats, addend), each with
            the bytes per pixel and per row.
    """
    raise NotImplementedError("only compiled loops call this")


@overload(finish, prefer_literal=True)
def _finish(lanes, registers, count, sums, sums_pixel, first, y, x, ends):
    def finish_pixels(lanes, registers, count, sums, sums_pixel, first, y, x, ends):
        _finish_row(lanes, registers, count, sums, sums_pixel, ends_at(ends, first, y, x))

    return finish_pixels


@register_jitable
def ends_at(ends, first, y, x):
    """Return the operands of `cabm.engine.epilogue.Row` from ``epilogue`` on; arguments as in `finish`."""
    epilogue_number, factors, biases, numbers, target, following, floats, addend = ends
    codes, size = y * target[2] + x * target[1] + first, FLOAT_BYTES[epilogue_number]
    return (
        epilogue_number,
        factors + 4 * first,
        biases + 4 * first,
        numbers,
        target[0] + codes,
        following[0] + codes,
        target[1],
        floats[0] + y * floats[2] + x * floats[1] + size * first,
        floats[1],
        addend[0] + y * addend[2] + x * addend[1] + size * first,
        addend[1],
    )
