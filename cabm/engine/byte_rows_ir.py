"""LLVM code for `cabm.engine.byte_rows`: sums of byte products, and what follows them.

A row of an image is bytes, and has a scale and a zero of its own: a byte b stands for scale * (b - zero).
So the sums of each row of a kernel are scaled by themselves before they are added, in float32. The inner
loops are those of `cabm.engine.vnni_ir`: one ``vpdpbusd`` for each register of sums.
"""

from __future__ import annotations

from typing import NamedTuple

from llvmlite import ir

from cabm.engine.emitter import SINGLE, SIZE, WORD, Emitter
from cabm.engine.vnni_ir import dot

REGISTERS = 4
"""Registers of output channels computed together."""

PIXELS = {16: {4: 6, 3: 8, 2: 12, 1: 14}, 8: {4: 2, 3: 3, 2: 5, 1: 6}}
"""By lanes and registers of output channels, the pixels computed together: all sums stay in registers."""

MOST_PIXELS = 14

COLOURS = 3
COLOUR_REGISTERS = {16: 8, 8: 4}
"""By lanes, the registers of pixels whose colours are computed together."""

TAP = 24
"""Bytes of a row of the table of taps: the address of the row of bytes that it reads; minus its zero; the
bits of its scale as float32, in the lower half."""


class Product(NamedTuple):
    """Operands of `emit_product`.

    Attributes:
        registers: 1..REGISTERS, registers of output channels.
        table: the rows that the kernel reads; see `TAP`.
        offset: bytes from the start of a row to the first number that is read for the first pixel.
        pixel: bytes from one pixel to the next.
        taps: rows of the kernel, counted for each part of inputs and weights.
        quads: groups of four bytes of a row of the kernel.
        weights: (taps, quads, registers * lanes, 4) int8.
        columns: (taps, registers * lanes) int32, sums of the weights.
        scales: a float32 for each output channel.
        biases: a float32 for each output channel.
        sums: (pixels, registers * lanes) float32 to write; as many pixels as `PIXELS` says.
    """

    registers: ir.Value
    table: ir.Value
    offset: ir.Value
    pixel: ir.Value
    taps: ir.Value
    quads: ir.Value
    weights: ir.Value
    columns: ir.Value
    scales: ir.Value
    biases: ir.Value
    sums: ir.Value


class Colours(NamedTuple):
    """Operands of `emit_colours`.

    Attributes:
        table, taps: as of `Product`.
        offset: bytes from the start of a plane to the first number that is read for the first pixel.
        plane: bytes from one plane of a row, of four channels of all pixels, to the next.
        kernel: columns of the kernel.
        planes: planes of a row.
        weights: (taps, kernel, planes, COLOURS, 4) int8.
        columns: (taps, COLOURS) int32, sums of the weights.
        scales: a float32 for each colour.
        biases: a float32 for each colour.
        sums: (COLOURS, pixels) float32 to write; as many pixels as `COLOUR_REGISTERS` hold.
        sums_row: bytes from one colour to the next there.
    """

    table: ir.Value
    taps: ir.Value
    offset: ir.Value
    plane: ir.Value
    kernel: ir.Value
    planes: ir.Value
    weights: ir.Value
    columns: ir.Value
    scales: ir.Value
    biases: ir.Value
    sums: ir.Value
    sums_row: ir.Value


class End(NamedTuple):
    """Operands of `emit_end`.

    Attributes:
        registers: 1..REGISTERS, registers of output channels; plus `ADDS` to add.
        count: pixels.
        sums: (count, registers * lanes) float32.
        addend: float32 to add for each pixel.
        addend_pixel: bytes from one pixel to the next there.
        slope: address of a float32 that negative results are multiplied by.
        target: float32 to write for each pixel.
        target_pixel: bytes from one pixel to the next there.
    """

    registers: ir.Value
    count: ir.Value
    sums: ir.Value
    addend: ir.Value
    addend_pixel: ir.Value
    slope: ir.Value
    target: ir.Value
    target_pixel: ir.Value


ADDS = 8
PRODUCT_INTEGERS = {"registers", "offset", "pixel", "taps", "quads"}
COLOUR_INTEGERS = {"taps", "offset", "plane", "kernel", "planes", "sums_row"}
END_INTEGERS = {"registers", "count", "addend_pixel", "target_pixel"}


def emit_product(emit: Emitter, operands: Product) -> None:
    """Emit the sums of some adjacent pixels for up to four registers of output channels."""
    registers = range(1, REGISTERS + 1)
    emit.choose(operands.registers, {n: lambda n=n: _emit_sums(emit, operands, n) for n in registers})


def _emit_sums(emit: Emitter, operands: Product, registers: int) -> None:
    builder, pixels = emit.builder, PIXELS[emit.lanes][registers]
    size = 4 * emit.lanes
    each = [(p, k) for p in range(pixels) for k in range(registers)]
    offsets = [builder.mul(operands.pixel, SIZE(pixel)) for pixel in range(pixels)]
    biases = [emit.load(emit.at(operands.biases, size * k), emit.singles) for k in range(registers)]
    for p, k in each:
        emit.store(biases[k], emit.at(operands.sums, size * (p * registers + k)))

    def quad(_, source, weights, *sums):
        loaded = [emit.load(emit.at(weights, size * k), emit.words) for k in range(registers)]
        fours = [emit.load(emit.at(source, offset), WORD) for offset in offsets]
        added = [dot(emit, sums[p * registers + k], emit.splat(fours[p]), loaded[k]) for p, k in each]
        return emit.at(source, 4), emit.at(weights, size * registers), *added

    def tap(_, table, weights, columns):
        source, minus, factor = _read_tap(emit, table)
        starts = [
            builder.mul(emit.splat(minus), emit.load(emit.at(columns, size * k), emit.words))
            for k in range(registers)
        ]
        firsts = (emit.at(source, operands.offset), weights, *[starts[k] for _, k in each])
        _, weights, *sums = emit.loop(operands.quads, firsts, quad)
        factors = [
            builder.fmul(emit.splat(factor), emit.load(emit.at(operands.scales, size * k), emit.singles))
            for k in range(registers)
        ]
        for (p, k), number in zip(each, sums, strict=True):
            _add_scaled(emit, number, factors[k], emit.at(operands.sums, size * (p * registers + k)))
        return emit.at(table, TAP), weights, emit.at(columns, size * registers)

    emit.loop(operands.taps, (operands.table, operands.weights, operands.columns), tap)


def emit_colours(emit: Emitter, operands: Colours) -> None:
    """Emit the three colours of adjacent pixels, which lie side by side in registers."""
    builder, size = emit.builder, 4 * emit.lanes
    each = [(v, c) for v in range(COLOUR_REGISTERS[emit.lanes]) for c in range(COLOURS)]
    rows = [emit.at(operands.sums, builder.mul(operands.sums_row, SIZE(c))) for c in range(COLOURS)]
    for v, c in each:
        bias = emit.load(emit.at(operands.biases, 4 * c), SINGLE)
        emit.store(emit.splat(bias), emit.at(rows[c], size * v))

    def plane(_, source, weights, *sums):
        loaded = [emit.splat(emit.load(emit.at(weights, 4 * c), WORD)) for c in range(COLOURS)]
        added = []
        for v in range(COLOUR_REGISTERS[emit.lanes]):
            pixels = emit.load(emit.at(source, size * v), emit.words)
            added += [dot(emit, sums[COLOURS * v + c], pixels, loaded[c]) for c in range(COLOURS)]
        return emit.at(source, operands.plane), emit.at(weights, 4 * COLOURS), *added

    def column(_, source, weights, *sums):
        _, weights, *sums = emit.loop(operands.planes, (source, weights, *sums), plane)
        return emit.at(source, 4), weights, *sums

    def tap(_, table, weights, columns):
        source, minus, factor = _read_tap(emit, table)
        starts = [
            emit.splat(builder.mul(minus, emit.load(emit.at(columns, 4 * c), WORD))) for c in range(COLOURS)
        ]
        firsts = (emit.at(source, operands.offset), weights, *[starts[c] for _, c in each])
        _, weights, *sums = emit.loop(operands.kernel, firsts, column)
        factors = [
            emit.splat(builder.fmul(factor, emit.load(emit.at(operands.scales, 4 * c), SINGLE)))
            for c in range(COLOURS)
        ]
        for (v, c), number in zip(each, sums, strict=True):
            _add_scaled(emit, number, factors[c], emit.at(rows[c], size * v))
        return emit.at(table, TAP), weights, emit.at(columns, 4 * COLOURS)

    emit.loop(operands.taps, (operands.table, operands.weights, operands.columns), tap)


def _read_tap(emit: Emitter, table: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Emit the loads of a tap: where its row starts, minus its zero, and its scale."""
    emit.forget_memory()  # or LLVM keeps the sums of the taps before in registers, and spills them
    source = emit.pointer(emit.load(table, SIZE))
    return source, emit.load(emit.at(table, 8), WORD), emit.load(emit.at(table, 16), SINGLE)


def _add_scaled(emit: Emitter, number: ir.Value, factor: ir.Value, place: ir.Value) -> None:
    """Emit the addition of whole numbers, scaled, to sums in memory."""
    value = emit.builder.sitofp(number, emit.singles)
    emit.store(emit.multiply_add(value, factor, emit.load(place, emit.singles)), place)


def emit_end(emit: Emitter, operands: End) -> None:
    """Emit what follows the sums: add, activate, write."""
    shapes = [registers + adds for registers in range(1, REGISTERS + 1) for adds in (0, ADDS)]
    emit.choose(operands.registers, {n: lambda n=n: _emit_pixels(emit, operands, n) for n in shapes})


def _emit_pixels(emit: Emitter, operands: End, shape: int) -> None:
    builder, size, registers = emit.builder, 4 * emit.lanes, shape % ADDS
    slope = emit.splat(emit.load(operands.slope, SINGLE))

    def pixel(_, sums, addend, target):
        for offset in range(0, size * registers, size):
            value = emit.load(emit.at(sums, offset), emit.singles)
            if shape & ADDS:
                value = builder.fadd(value, emit.load(emit.at(addend, offset), emit.singles))
            emit.store(emit.leaky(value, slope), emit.at(target, offset))
        steps = (size * registers, operands.addend_pixel, operands.target_pixel)
        return [emit.at(at, step) for at, step in zip((sums, addend, target), steps, strict=True)]

    emit.loop(operands.count, (operands.sums, operands.addend, operands.target), pixel)
