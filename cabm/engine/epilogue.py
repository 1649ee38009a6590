"""LLVM code that finishes the sums of a convolution: scale, encode, or add to the skip connection.

All forms of the residual blocks share it. Its arithmetic is float32, and each operation is rounded by
itself, as in the simulation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llvmlite import ir

from cabm.engine.emitter import SINGLE, SIZE, Emitter
from cabm.engine.layer_numbers import (
    ADD_TO_CODES,
    ADD_TO_FLOATS,
    GAIN,
    HIGH,
    INVERSE,
    NEXT_READ,
    NEXT_SKIP,
    NUMBERS,
    SKIP_STEP,
    STEP,
    TO_CODES,
    ZERO,
)

_ROUND = 12582912.0  # 1.5 * 2^23: see `cabm.engine.elementwise_loops`

Finish = Callable[[list[ir.Value], ir.Value], None]


class Targets(Protocol):
    """Operands of the epilogues.

    Attributes:
        epilogue: TO_CODES, ADD_TO_CODES or ADD_TO_FLOATS.
        channels: bytes from one pixel to the next.
        factors, biases: a float32 for each output channel of the group.
        numbers: the layer's NUMBERS float32.
        target: the first pixel's bytes in the image that is written or added to.
        following: the first pixel's bytes in the next block's input; used by ADD_TO_CODES only.
        floats: the first pixel's float32 results; used by ADD_TO_FLOATS only.
    """

    epilogue: ir.Value
    channels: ir.Value
    factors: ir.Value
    biases: ir.Value
    numbers: ir.Value
    target: ir.Value
    following: ir.Value
    floats: ir.Value


def emit_epilogues(emit: Emitter, operands: Targets, emit_pixels: Callable[[Finish], None]) -> None:
    """Emit the three epilogues and the choice between them.

    Args:
        emit: at the place to emit.
        operands: see `Targets`.
        emit_pixels: called once per epilogue; it calls the function that it is given with the registers of
            sums of a pixel and the pixel's distance from the first, in pixels.
    """

    def emit_epilogue(epilogue: int) -> Callable[[], None]:
        def body() -> None:
            numbers = [
                emit.splat(emit.load(emit.at(operands.numbers, 4 * i), SINGLE)) for i in range(NUMBERS)
            ]
            emit_pixels(lambda sums, pixel: _emit_pixel(emit, operands, epilogue, numbers, sums, pixel))

        return body

    kinds = (TO_CODES, ADD_TO_CODES, ADD_TO_FLOATS)
    emit.choose(operands.epilogue, {epilogue: emit_epilogue(epilogue) for epilogue in kinds})


def _emit_pixel(
    emit: Emitter,
    operands: Targets,
    epilogue: int,
    numbers: list[ir.Value],
    sums: list[ir.Value],
    pixel: ir.Value,
) -> None:
    """Emit an epilogue of one pixel."""
    builder = emit.builder
    offset = builder.mul(operands.channels, pixel)
    target, following = emit.at(operands.target, offset), emit.at(operands.following, offset)
    floats = emit.at(operands.floats, builder.mul(offset, SIZE(4)))
    for k, register in enumerate(sums):
        bytes_before = emit.lanes * k
        value = _emit_value(emit, operands, register, 4 * bytes_before)
        whole = _emit_whole(emit, builder.fmul(value, numbers[GAIN]), *numbers[INVERSE : HIGH + 1])
        here = emit.at(target, bytes_before)
        if epilogue == TO_CODES:
            emit.store(builder.trunc(builder.bitcast(whole, emit.words), emit.bytes), here)
            continue
        total = _emit_sum(emit, whole, numbers, here)
        if epilogue == ADD_TO_FLOATS:
            emit.store(total, emit.at(floats, 4 * bytes_before))
            continue
        read = _emit_signed_codes(emit, total, numbers, NEXT_READ)
        emit.store(read, emit.at(following, bytes_before))
        emit.store(_emit_signed_codes(emit, total, numbers, NEXT_SKIP), here)


def _emit_value(emit: Emitter, operands: Targets, sums: ir.Value, offset: int) -> ir.Value:
    """Emit sum * factor + bias; factors and biases start ``offset`` bytes after the group's."""
    factors, biases = (
        emit.load(emit.at(pointer, offset), emit.singles) for pointer in (operands.factors, operands.biases)
    )
    product = emit.builder.fmul(emit.builder.sitofp(sums, emit.singles), factors)
    return emit.builder.fadd(product, biases)


def _emit_whole(
    emit: Emitter, value: ir.Value, inverse: ir.Value, low: ir.Value, high: ir.Value
) -> ir.Value:
    """Emit value * inverse, clipped and rounded, plus `_ROUND`: its lowest byte is that of the code."""
    rounding = emit.constant(emit.singles, _ROUND)
    return emit.builder.fadd(emit.clip(emit.builder.fmul(value, inverse), low, high), rounding)


def _emit_sum(emit: Emitter, whole: ir.Value, numbers: list[ir.Value], target: ir.Value) -> ir.Value:
    """Emit the sum of the residual, rounded to its codes, and the skip connection."""
    builder = emit.builder
    codes = builder.fsub(whole, emit.constant(emit.singles, _ROUND))
    residual = builder.fmul(codes, numbers[STEP])
    bytes_ = builder.zext(emit.load(target, emit.bytes), emit.words)
    skip = builder.sitofp(builder.sub(bytes_, emit.constant(emit.words, ZERO)), emit.singles)
    return builder.fadd(residual, builder.fmul(skip, numbers[SKIP_STEP]))


def _emit_signed_codes(emit: Emitter, total: ir.Value, numbers: list[ir.Value], grid: int) -> ir.Value:
    """Emit the bytes of a sum on the signed grid whose inverse and largest code are ``numbers[grid:]``."""
    builder, (inverse, high) = emit.builder, numbers[grid : grid + 2]
    whole = _emit_whole(emit, total, inverse, builder.fneg(high), high)
    zero = emit.constant(emit.words, ZERO)
    return builder.trunc(builder.add(builder.bitcast(whole, emit.words), zero), emit.bytes)
