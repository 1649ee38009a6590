"""LLVM code for `cabm.engine.fixed_pointwise`: rows as 16-bit numbers, and products of pairs of them."""

from __future__ import annotations

from typing import NamedTuple

from llvmlite import ir

from cabm.engine.emitter import HALF, SINGLE, SIZE, WORD, Emitter
from cabm.engine.layer_numbers import ROUND

PART = 64
"""Channels whose products are summed as whole numbers; each pixel's part has one scale."""

MOST, MOST_WEIGHT = 8191, 4095
"""Largest numbers: PART products of them stay below 2^31."""

PIXELS = 6
"""Pixels computed together, also where a row ends before."""

REGISTERS = {8: 2, 16: 4}
"""Registers of output channels computed together, by lanes."""

PRODUCT_INTEGERS = {"registers", "pixel", "parts"}
FIX_INTEGERS = {"count", "registers", "pixel"}


class Product(NamedTuple):
    """Operands of `emit_product`.

    Attributes:
        registers: 1..REGISTERS, registers of output channels.
        source: the first pixel's int16.
        pixel: bytes from one pixel to the next.
        scales: a float32 for each part of the row's pixels, as far apart as the parts.
        parts: number of parts.
        weights: (parts, PART / 2, registers * lanes, 2) int16.
        factors: a float32 for each output channel, the scale of its weights.
        biases: a float32 for each output channel.
        sums: (PIXELS, registers * lanes) float32 to write.
    """

    registers: ir.Value
    source: ir.Value
    pixel: ir.Value
    scales: ir.Value
    parts: ir.Value
    weights: ir.Value
    factors: ir.Value
    biases: ir.Value
    sums: ir.Value


class Fix(NamedTuple):
    """Operands of `emit_fix`.

    Attributes:
        count: number of pixels.
        registers: float32 registers of a pixel.
        source: the pixels' float32, one after another.
        inverse: address of a float32 to multiply by.
        target: the first pixel's int16 to write.
        pixel: bytes from one pixel to the next there.
    """

    count: ir.Value
    registers: ir.Value
    source: ir.Value
    inverse: ir.Value
    target: ir.Value
    pixel: ir.Value


def emit_fix(emit: Emitter, operands: Fix) -> None:
    """Emit the rounding of float32 to whole numbers of 16 bits."""
    builder, size = emit.builder, 4 * emit.lanes
    inverse = emit.splat(emit.load(operands.inverse, SINGLE))
    magic, halves = emit.constant(emit.singles, ROUND), ir.VectorType(HALF, emit.lanes)

    def register(_, source, target):
        value = builder.fmul(emit.load(source, emit.singles), inverse)
        whole = builder.bitcast(builder.fadd(value, magic), emit.words)
        emit.store(builder.trunc(whole, halves), target)
        return emit.at(source, size), emit.at(target, size // 2)

    def pixel(_, source, target):
        source, _ = emit.loop(operands.registers, (source, target), register)
        return source, emit.at(target, operands.pixel)

    emit.loop(operands.count, (operands.source, operands.target), pixel)


def emit_product(emit: Emitter, operands: Product) -> None:
    """Emit the sums of PIXELS adjacent pixels."""
    shapes = range(1, REGISTERS[emit.lanes] + 1)
    emit.choose(operands.registers, {n: lambda n=n: _emit_shape(emit, operands, n) for n in shapes})


def _emit_shape(emit: Emitter, operands: Product, registers: int) -> None:
    builder, size = emit.builder, 4 * emit.lanes
    each = [(p, k) for p in range(PIXELS) for k in range(registers)]
    places = [emit.at(operands.sums, size * i) for i in range(len(each))]
    offsets = [builder.mul(operands.pixel, SIZE(pixel)) for pixel in range(PIXELS)]
    for (_, k), place in zip(each, places, strict=True):
        emit.store(emit.load(emit.at(operands.biases, size * k), emit.singles), place)

    def pair(_, source, weights, *sums):
        loaded = [emit.load(emit.at(weights, size * k), emit.halves) for k in range(registers)]
        twos = [emit.splat(emit.load(emit.at(source, offset), WORD)) for offset in offsets]
        products = [emit.multiply_pairs(builder.bitcast(twos[p], emit.halves), loaded[k]) for p, k in each]
        added = [builder.add(a, b) for a, b in zip(sums, products, strict=True)]
        return emit.at(source, 4), emit.at(weights, size * registers), *added

    def part(_, source, scale, weights):
        emit.forget_memory()  # or LLVM keeps the sums of the parts before in registers, and spills them
        zeros = [emit.constant(emit.words, 0)] * len(each)
        source, weights, *sums = emit.loop(SIZE(PART // 2), (source, weights, *zeros), pair)
        common = emit.splat(emit.load(scale, SINGLE))
        factors = [
            builder.fmul(common, emit.load(emit.at(operands.factors, size * k), emit.singles))
            for k in range(registers)
        ]
        for (_, k), number, place in zip(each, sums, places, strict=True):
            value = builder.sitofp(number, emit.singles)
            emit.store(emit.multiply_add(value, factors[k], emit.load(place, emit.singles)), place)
        return source, emit.at(scale, 2 * PART), weights

    emit.loop(operands.parts, (operands.source, operands.scales, operands.weights), part)
