"""LLVM code for `cabm.engine.amx_pointwise`: float32 to two bfloat16, and their products."""

from __future__ import annotations

from typing import NamedTuple

from llvmlite import ir

from cabm.engine.amx_ir import DEPTH as ROW
from cabm.engine.amx_ir import (
    LANES,
    PIXELS,
    PIXELS_AT,
    WEIGHTS_AT,
    call_unit,
    start_sums,
    store_sums,
    sums_at,
)
from cabm.engine.emitter import BYTE, SIZE, WORD, Emitter

PARTS = 2
"""bfloat16 numbers whose sum stands for a float32."""

DEPTH = ROW // 2
"""Input numbers of a tile register's row."""

TILE = ROW * LANES
"""Bytes of a tile register."""

KEPT, HALF_UNIT = -0x10000, 0x8000
"""Bits of a float32 that are those of a bfloat16, and half of the lowest of them."""

ORDER = ((0, 1), (0, 0), (1, 0))
"""Parts of weights and pixels that are multiplied: all but the lower ones of both."""

DIVISION_INTEGERS = {"count", "pixel", "registers", "part"}
PRODUCT_INTEGERS = {"halves", "part", "depths"}


class Division(NamedTuple):
    """Operands of `emit_division`.

    Attributes:
        count: pixels.
        source: the first pixel's float32.
        pixel: bytes from one pixel to the next.
        registers: registers of 16 channels.
        parts: (PARTS, ceil(registers / 2), PIXELS, 32) bfloat16 to write.
        part: bytes from one part to the next.
    """

    count: ir.Value
    source: ir.Value
    pixel: ir.Value
    registers: ir.Value
    parts: ir.Value
    part: ir.Value


class Product(NamedTuple):
    """Operands of `emit_product`.

    Attributes:
        halves: registers of 16 output channels, 1 or 2.
        parts, part: of the pixels, see `Division`.
        depths: tile registers that hold a pixel's channels.
        weights: (halves, depths, PARTS, 16, 16, 2) bfloat16.
        biases: a float32 for each output channel.
        sums: (PIXELS, 2, 16) float32 to write.
    """

    halves: ir.Value
    parts: ir.Value
    part: ir.Value
    depths: ir.Value
    weights: ir.Value
    biases: ir.Value
    sums: ir.Value


def emit_division(emit: Emitter, operands: Division) -> None:
    """Emit the division of pixels into parts: what rounding takes away is the next part."""
    builder = emit.builder
    pairs = builder.lshr(operands.registers, SIZE(1))
    odd = builder.trunc(operands.registers, ir.IntType(1))

    def pixel(_, source, parts):
        with builder.if_then(builder.icmp_unsigned("!=", pairs, SIZE(0))):
            emit.loop(pairs, (source, parts), pair)
        with builder.if_then(odd):
            source_at = emit.at(source, builder.mul(pairs, SIZE(4 * DEPTH)))
            parts_at = emit.at(parts, builder.mul(pairs, SIZE(ROW * PIXELS)))
            _emit_parts(emit, [emit.load(source_at, emit.words), None], parts_at, operands.part)
        return emit.at(source, operands.pixel), emit.at(parts, ROW)

    def pair(_, source, parts):
        loaded = [emit.load(emit.at(source, offset), emit.words) for offset in (0, 4 * LANES)]
        _emit_parts(emit, loaded, parts, operands.part)
        return emit.at(source, 4 * DEPTH), emit.at(parts, ROW * PIXELS)

    emit.loop(operands.count, (operands.source, operands.parts), pixel)


def _emit_parts(emit: Emitter, bits: list[ir.Value | None], place: ir.Value, part: ir.Value) -> None:
    """Emit the parts of two registers of float32, given as their bits; None: zeros."""
    builder = emit.builder
    upper = ir.Constant(ir.VectorType(WORD, 2 * LANES), list(range(1, 4 * LANES, 2)))
    zeros = emit.constant(emit.words, 0)
    for index in range(PARTS):
        rounded = [zeros if each is None else _rounded(emit, each) for each in bits]
        there = place if index == 0 else emit.at(place, builder.mul(part, SIZE(index)))
        emit.store(
            builder.shuffle_vector(*(builder.bitcast(each, emit.halves) for each in rounded), upper), there
        )
        bits = [
            None if each is None else _less(emit, each, other)
            for each, other in zip(bits, rounded, strict=True)
        ]


def _rounded(emit: Emitter, bits: ir.Value) -> ir.Value:
    """Emit a float32 whose upper half is the nearest bfloat16; the lower half is of no use."""
    return emit.builder.add(bits, emit.constant(emit.words, HALF_UNIT))


def _less(emit: Emitter, bits: ir.Value, rounded: ir.Value) -> ir.Value:
    """Emit a float32 less its bfloat16, which is exact."""
    builder = emit.builder
    upper = builder.and_(rounded, emit.constant(emit.words, KEPT))
    whole, taken = (builder.bitcast(each, emit.singles) for each in (bits, upper))
    return builder.bitcast(builder.fsub(whole, taken), emit.words)


def emit_product(emit: Emitter, operands: Product) -> None:
    """Emit the sums of PIXELS pixels and 16 or 32 output channels."""
    bodies = {halves: lambda h=halves: _emit_sums(emit, operands, h) for halves in (1, 2)}
    emit.choose(operands.halves, bodies)


def _emit_sums(emit: Emitter, operands: Product, halves: int) -> None:
    builder = emit.builder
    half = builder.mul(operands.depths, SIZE(PARTS * TILE))
    offsets = [builder.mul(operands.part, SIZE(index)) for index in range(PARTS)]
    start_sums(emit, operands.biases, 2, halves)

    def depth(_, parts, weights):
        loaded = None, None  # parts of weights and pixels that the registers hold
        for of_weights, of_pixels in ORDER:
            if loaded[0] != of_weights:
                for k in range(halves):
                    place = emit.at(weights, of_weights * TILE)
                    place = place if k == 0 else emit.at(place, half)
                    call_unit(emit, "tileloadd64", BYTE(WEIGHTS_AT + k), place, SIZE(ROW))
            if loaded[1] != of_pixels:
                for j in range(2):
                    place = emit.at(emit.at(parts, offsets[of_pixels]), j * TILE)
                    call_unit(emit, "tileloadd64", BYTE(PIXELS_AT + j), place, SIZE(ROW))
            loaded = of_weights, of_pixels
            for j in range(2):
                for k in range(halves):
                    sums = sums_at(halves, j, k)
                    call_unit(emit, "tdpbf16ps", sums, BYTE(PIXELS_AT + j), BYTE(WEIGHTS_AT + k))
        return emit.at(parts, ROW * PIXELS), emit.at(weights, PARTS * TILE)

    emit.loop(operands.depths, (operands.parts, operands.weights), depth)
    store_sums(emit, operands.sums, 2, halves)
