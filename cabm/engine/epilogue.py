"""LLVM code that finishes the sums of a convolution: scale, activate, add, encode.

All forms share it. Its arithmetic is float32, and each operation is rounded by itself, as in the
simulation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from llvmlite import ir

from cabm.engine.emitter import SINGLE, Emitter
from cabm.engine.layer_numbers import (
    AFTER,
    EPILOGUES,
    GAIN,
    HIGH,
    INVERSE,
    LOW,
    NEXT_INVERSE,
    NUMBERS,
    READ_INVERSE,
    ROUND,
    ROUNDING,
    SKIP_STEP,
    SLOPE,
    STEP,
    ZERO,
    Epilogue,
)


class Row(NamedTuple):
    """Operands of `emit_row`, all integers: numbers, distances in bytes, or addresses.

    Attributes:
        registers: registers of output channels.
        count: adjacent pixels.
        sums: of the first pixel, int32 or float32 (`Epilogue.single`).
        sums_pixel: from the sums of one pixel to those of the next.
        epilogue: index into `EPILOGUES`.
        factors, biases: a float32 for each output channel.
        numbers: the step's NUMBERS float32.
        target, following: the first pixel's bytes in the image that is written or added to, and in that of
            the codes that the next convolution reads.
        codes_pixel: from one pixel of these to the next.
        floats, floats_pixel: the first pixel's float32 results.
        addend, addend_pixel: the first pixel's float32 to add.
    """

    registers: ir.Value
    count: ir.Value
    sums: ir.Value
    sums_pixel: ir.Value
    epilogue: ir.Value
    factors: ir.Value
    biases: ir.Value
    numbers: ir.Value
    target: ir.Value
    following: ir.Value
    codes_pixel: ir.Value
    floats: ir.Value
    floats_pixel: ir.Value
    addend: ir.Value
    addend_pixel: ir.Value


INTEGERS = {"registers", "count", "sums_pixel", "epilogue", "codes_pixel", "floats_pixel", "addend_pixel"}


class _Pixel(NamedTuple):
    """Addresses of a register's numbers at one pixel."""

    sums: ir.Value
    target: ir.Value
    following: ir.Value
    floats: ir.Value
    addend: ir.Value


def emit_row(emit: Emitter, operands: Row) -> None:
    """Emit the epilogues of ``count`` pixels, and the choice between them."""

    def emit_epilogue(epilogue: Epilogue) -> Callable[[], None]:
        def body() -> None:
            numbers = [
                emit.splat(emit.load(emit.at(operands.numbers, 4 * i), SINGLE)) for i in range(NUMBERS)
            ]
            _emit_registers(emit, operands, epilogue, numbers)

        return body

    emit.choose(operands.epilogue, {i: emit_epilogue(each) for i, each in enumerate(EPILOGUES)})


def _emit_registers(emit: Emitter, operands: Row, epilogue: Epilogue, numbers: list[ir.Value]) -> None:
    """Emit an epilogue: a loop over registers and, inside it, over pixels."""
    size = 4 * emit.lanes
    steps = _Pixel(
        operands.sums_pixel,
        operands.codes_pixel,
        operands.codes_pixel,
        operands.floats_pixel,
        operands.addend_pixel,
    )

    def register(_, factors, biases, *first):
        affine = [emit.load(each, emit.singles) for each in (factors, biases)]

        def pixel(_, *here):
            _emit_pixel(emit, epilogue, numbers, affine, _Pixel(*here))
            return tuple(emit.at(each, step) for each, step in zip(here, steps, strict=True))

        emit.loop(operands.count, first, pixel)
        sizes = _Pixel(size, emit.lanes, emit.lanes, size, size)
        further = (emit.at(each, step) for each, step in zip(first, sizes, strict=True))
        return emit.at(factors, size), emit.at(biases, size), *further

    first = (getattr(operands, name) for name in _Pixel._fields)
    emit.loop(operands.registers, (operands.factors, operands.biases, *first), register)


def _emit_pixel(
    emit: Emitter, epilogue: Epilogue, numbers: list[ir.Value], affine: list[ir.Value], at: _Pixel
) -> None:
    """Emit an epilogue of one register of one pixel."""
    builder = emit.builder
    value = _emit_value(emit, epilogue, affine, at)
    if epilogue.leaky:
        value = _emit_leaky(emit, value, numbers[SLOPE])
    if epilogue.coded:
        value = _emit_whole(emit, builder.fmul(value, numbers[GAIN]), *numbers[INVERSE : HIGH + 1])
        value = builder.fsub(value, emit.constant(emit.singles, ROUND))
        value = builder.fmul(value, numbers[STEP])
    if epilogue.adds == "codes":
        value = builder.fadd(value, _emit_skip(emit, numbers, at))
    if epilogue.adds == "floats":
        value = builder.fadd(value, emit.load(at.addend, emit.singles))
        value = _emit_leaky(emit, value, numbers[AFTER])
    if epilogue.floats:
        emit.store(value, at.floats)
    if epilogue.codes == "own":
        limits = numbers[LOW : ROUNDING + 1]
        _emit_bytes(emit, _emit_whole(emit, value, numbers[INVERSE], *limits), at.target)
    if epilogue.codes == "two":
        rounding = emit.constant(emit.singles, ROUND + ZERO)
        for first, place in ((READ_INVERSE, at.following), (NEXT_INVERSE, at.target)):
            inverse, high = numbers[first : first + 2]
            _emit_bytes(emit, _emit_whole(emit, value, inverse, builder.fneg(high), high, rounding), place)


def _emit_value(emit: Emitter, epilogue: Epilogue, affine: list[ir.Value], at: _Pixel) -> ir.Value:
    """Emit sum * factor + bias."""
    if epilogue.single:
        return emit.load(at.sums, emit.singles)
    factors, biases = affine
    sums = emit.builder.sitofp(emit.load(at.sums, emit.words), emit.singles)
    return emit.builder.fadd(emit.builder.fmul(sums, factors), biases)


def _emit_leaky(emit: Emitter, value: ir.Value, slope: ir.Value) -> ir.Value:
    negative = emit.builder.fcmp_ordered("<", value, emit.constant(emit.singles, 0))
    return emit.builder.select(negative, emit.builder.fmul(value, slope), value)


def _emit_whole(
    emit: Emitter,
    value: ir.Value,
    inverse: ir.Value,
    low: ir.Value,
    high: ir.Value,
    rounding: ir.Value | None = None,
) -> ir.Value:
    """Emit value * inverse, clipped, plus ``rounding`` (default: `ROUND`), which rounds it."""
    rounding = emit.constant(emit.singles, ROUND) if rounding is None else rounding
    return emit.builder.fadd(emit.clip(emit.builder.fmul(value, inverse), low, high), rounding)


def _emit_bytes(emit: Emitter, whole: ir.Value, place: ir.Value) -> None:
    emit.store(emit.builder.trunc(emit.builder.bitcast(whole, emit.words), emit.bytes), place)


def _emit_skip(emit: Emitter, numbers: list[ir.Value], at: _Pixel) -> ir.Value:
    """Emit the values of the skip connection's codes."""
    builder = emit.builder
    bytes_ = builder.zext(emit.load(at.target, emit.bytes), emit.words)
    codes = builder.sitofp(builder.sub(bytes_, emit.constant(emit.words, ZERO)), emit.singles)
    return builder.fmul(codes, numbers[SKIP_STEP])
