"""LLVM code that finishes the sums of a convolution: scale, activate, add, encode.

All forms share it. Its arithmetic is float32, and each operation is rounded by itself, as in the
simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from cabm.engine.emitter import HALF, SINGLE, Emitter
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

ROUNDED_LANES = 16
"""Lanes of the forms whose floats are bfloat16."""

HALF_UNIT = 0x8000
"""Half of the lowest bit of a bfloat16, in the bits of a float32."""


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
    """Addresses of a register's numbers at one pixel, or how far to move them."""

    sums: Any
    target: Any
    following: Any
    floats: Any
    addend: Any


def emit_row(emit: Emitter, operands: Row) -> None:
    """Emit the epilogues of ``count`` pixels, and the choice between them."""

    bodies = {
        i: lambda each=each: _emit_registers(emit, operands, each)
        for i, each in enumerate(EPILOGUES)
        if emit.lanes == ROUNDED_LANES or not each.rounded
    }
    emit.choose(operands.epilogue, bodies)


def _emit_registers(emit: Emitter, operands: Row, epilogue: Epilogue) -> None:
    """Emit an epilogue: a loop over registers and, inside it, over pixels."""
    sizes, numbers = _register_sizes(emit, epilogue), splat_numbers(emit, operands)

    def register(_, factors, biases, *first):
        row = operands._replace(factors=factors, biases=biases, **_Pixel(*first)._asdict())
        addresses, pixel = pixel_by_pixel(emit, row, epilogue, 1, numbers)
        emit.loop(operands.count, addresses, pixel)
        further = (emit.at(each, step) for each, step in zip(first, sizes, strict=True))
        return emit.at(factors, sizes.sums), emit.at(biases, sizes.sums), *further

    first = (getattr(operands, name) for name in _Pixel._fields)
    emit.loop(operands.registers, (operands.factors, operands.biases, *first), register)


def splat_numbers(emit: Emitter, operands: Row) -> list[ir.Value]:
    """Emit the loads of a step's numbers, each into a register of its own."""
    return [emit.splat(emit.load(emit.at(operands.numbers, 4 * i), SINGLE)) for i in range(NUMBERS)]


def pixel_by_pixel(
    emit: Emitter, operands: Row, epilogue: Epilogue, registers: int, numbers: list[ir.Value]
) -> tuple[Sequence[ir.Value], Callable[..., Sequence[ir.Value]]]:
    """Emit what an epilogue loads once.

    Args:
        emit, operands, epilogue: the epilogue; the numbers of registers and pixels are not used.
        registers: of output channels.
        numbers: from `splat_numbers`.

    Returns:
        The first pixel's addresses, and the body of a loop that finishes a pixel and returns the addresses
        of the next; see `Emitter.loop`.
    """
    sizes = _register_sizes(emit, epilogue)
    affine = [
        [
            emit.load(emit.at(each, sizes.sums * k), emit.singles)
            for each in (operands.factors, operands.biases)
        ]
        for k in range(registers)
    ]
    steps = _Pixel(
        operands.sums_pixel,
        operands.codes_pixel,
        operands.codes_pixel,
        operands.floats_pixel,
        operands.addend_pixel,
    )

    def pixel(_, *here):
        for k in range(registers):
            register = (emit.at(each, k * size) for each, size in zip(here, sizes, strict=True))
            _emit_pixel(emit, epilogue, numbers, affine[k], _Pixel(*register))
        return tuple(emit.at(each, step) for each, step in zip(here, steps, strict=True))

    return [getattr(operands, name) for name in _Pixel._fields], pixel


def _register_sizes(emit: Emitter, epilogue: Epilogue) -> _Pixel:
    """Return the bytes of a register's numbers."""
    size = 4 * emit.lanes
    floats = size // 2 if epilogue.rounded else size
    return _Pixel(size, emit.lanes, emit.lanes, floats, floats)


def _emit_pixel(
    emit: Emitter, epilogue: Epilogue, numbers: list[ir.Value], affine: list[ir.Value], at: _Pixel
) -> None:
    """Emit an epilogue of one register of one pixel."""
    builder = emit.builder
    value = _emit_value(emit, epilogue, affine, at)
    if epilogue.leaky:
        value = emit.leaky(value, numbers[SLOPE])
    if epilogue.coded:
        value = builder.fmul(builder.fmul(value, numbers[GAIN]), numbers[INVERSE])
        value = builder.fadd(emit.limit(value, numbers[HIGH]), emit.constant(emit.singles, ROUND))
        value = builder.fsub(value, emit.constant(emit.singles, ROUND))
        value = builder.fmul(value, numbers[STEP])
    if epilogue.adds == "codes":
        value = builder.fadd(value, _emit_skip(emit, numbers, at))
    if epilogue.adds == "floats":
        addend = _load_rounded(emit, at.addend) if epilogue.rounded else emit.load(at.addend, emit.singles)
        value = builder.fadd(value, addend)
        value = emit.leaky(value, numbers[AFTER])
    if epilogue.floats:
        emit.store(_rounded(emit, value) if epilogue.rounded else value, at.floats)
    if epilogue.codes == "own":
        whole = emit.clip(builder.fmul(value, numbers[INVERSE]), *numbers[LOW : HIGH + 1])
        _emit_bytes(emit, builder.fadd(whole, numbers[ROUNDING]), at.target)
    if epilogue.codes == "two":
        rounding = emit.constant(emit.singles, ROUND + ZERO)
        for first, place in ((READ_INVERSE, at.following), (NEXT_INVERSE, at.target)):
            inverse, high = numbers[first : first + 2]
            _emit_bytes(emit, builder.fadd(emit.limit(builder.fmul(value, inverse), high), rounding), place)


def _emit_value(emit: Emitter, epilogue: Epilogue, affine: list[ir.Value], at: _Pixel) -> ir.Value:
    """Emit sum * factor + bias."""
    if epilogue.single:
        return emit.load(at.sums, emit.singles)
    factors, biases = affine
    sums = emit.builder.sitofp(emit.load(at.sums, emit.words), emit.singles)
    return emit.builder.fadd(emit.builder.fmul(sums, factors), biases)


def _emit_bytes(emit: Emitter, whole: ir.Value, place: ir.Value) -> None:
    emit.store(emit.builder.trunc(emit.builder.bitcast(whole, emit.words), emit.bytes), place)


def _emit_skip(emit: Emitter, numbers: list[ir.Value], at: _Pixel) -> ir.Value:
    """Emit the values of the skip connection's codes: (byte - ZERO) * step, rounded once."""
    builder, step = emit.builder, numbers[SKIP_STEP]
    bytes_ = builder.sitofp(builder.zext(emit.load(at.target, emit.bytes), emit.words), emit.singles)
    return emit.multiply_add(bytes_, step, builder.fmul(step, emit.constant(emit.singles, -ZERO)))


def _rounded(emit: Emitter, value: ir.Value) -> ir.Value:
    """Emit the nearest bfloat16, as 16-bit numbers."""
    builder = emit.builder
    bits = builder.add(builder.bitcast(value, emit.words), emit.constant(emit.words, HALF_UNIT))
    upper = builder.lshr(bits, emit.constant(emit.words, 16))
    return builder.trunc(upper, ir.VectorType(HALF, emit.lanes))


def _load_rounded(emit: Emitter, place: ir.Value) -> ir.Value:
    """Emit bfloat16 numbers as float32."""
    builder = emit.builder
    bits = builder.zext(emit.load(place, ir.VectorType(HALF, emit.lanes)), emit.words)
    return builder.bitcast(builder.shl(bits, emit.constant(emit.words, 16)), emit.singles)
