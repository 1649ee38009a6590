"""LLVM code for `cabm.engine.float_winograd`: the transforms of one tile, of all channels or of a few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llvmlite import ir

from cabm.engine.emitter import SIZE, Emitter

SIDE = 6
"""Numbers of a tile along an axis."""

POSITIONS = SIDE**2

POINTS = (0, 1, -1, 2, -2)
"""Where polynomials are evaluated; the sixth point is infinity."""


class Input(NamedTuple):
    """Operands of `emit_input`.

    Attributes:
        source: the tile's upper left float32.
        row, pixel: bytes from one row, and from one pixel, to the next.
        registers: registers of channels.
        transformed: float32 to write, at the tile's first number.
        position: bytes from one position of the transform to the next.
    """

    source: ir.Value
    row: ir.Value
    pixel: ir.Value
    registers: ir.Value
    transformed: ir.Value
    position: ir.Value


class Output(NamedTuple):
    """Operands of `emit_output`.

    Attributes:
        outputs: pixels along an axis, 2 or 4.
        products: float32, at the tile's first number.
        position: bytes from one position of the products to the next.
        registers: registers of channels.
        biases: a float32 for each channel.
        slope: address of a float32 that negative results are multiplied by.
        target: the tile's upper left float32 to write.
        row, pixel: bytes from one row, and from one pixel, to the next.
    """

    outputs: ir.Value
    products: ir.Value
    position: ir.Value
    registers: ir.Value
    biases: ir.Value
    slope: ir.Value
    target: ir.Value
    row: ir.Value
    pixel: ir.Value


def emit_input(emit: Emitter, operands: Input) -> None:
    """Emit the transform of 6x6 pixels of all channels."""
    builder, size = emit.builder, 4 * emit.lanes
    grid = [(y, x) for y in range(SIDE) for x in range(SIDE)]
    offsets = [
        builder.add(builder.mul(operands.row, SIZE(y)), builder.mul(operands.pixel, SIZE(x)))
        for y, x in grid
    ]

    def transform(_, source, transformed):
        pixels = [emit.load(emit.at(source, offset), emit.singles) for offset in offsets]
        columns = [_forward(emit, pixels[x::SIDE]) for x in range(SIDE)]
        for y in range(SIDE):
            for x, value in enumerate(_forward(emit, [column[y] for column in columns])):
                place = builder.mul(operands.position, SIZE(SIDE * y + x))
                emit.store(value, emit.at(transformed, place))
        return emit.at(source, size), emit.at(transformed, size)

    emit.loop(operands.registers, (operands.source, operands.transformed), transform)


def _forward(emit: Emitter, values: Sequence[ir.Value]) -> list[ir.Value]:
    """Emit the transform of six numbers (Lavin and Gray, 2016, B for F(4,3))."""
    a, b, c, d, e, f = values
    builder = emit.builder

    def times(factor: float, value: ir.Value, addend: ir.Value) -> ir.Value:
        return _multiply_add(emit, value, emit.constant(emit.singles, factor), addend)

    even, odd = times(-4, c, e), times(-4, b, d)
    near, far = builder.fsub(e, c), builder.fsub(d, b)
    return [
        times(4, a, times(-5, c, e)),
        builder.fadd(even, odd),
        builder.fsub(even, odd),
        times(2, far, near),
        times(-2, far, near),
        times(4, b, times(-5, d, f)),
    ]


def emit_output(emit: Emitter, operands: Output) -> None:
    """Emit the transform of one tile's products to 2x2 or 4x4 pixels, plus biases and activation."""
    sizes = {number: lambda number=number: _emit_pixels(emit, operands, number) for number in (2, 4)}
    emit.choose(operands.outputs, sizes)


def _emit_pixels(emit: Emitter, operands: Output, outputs: int) -> None:
    builder, size = emit.builder, 4 * emit.lanes
    slope = emit.splat(emit.load(operands.slope, emit.singles.element))

    def transform(_, products, biases, target):
        bias = emit.load(biases, emit.singles)
        values = [
            emit.load(emit.at(products, builder.mul(operands.position, SIZE(p))), emit.singles)
            for p in range(POSITIONS)
        ]
        columns = [_backward(emit, values[x::SIDE], outputs) for x in range(SIDE)]
        for y in range(outputs):
            row = emit.at(target, builder.mul(operands.row, SIZE(y)))
            for x, value in enumerate(_backward(emit, [column[y] for column in columns], outputs)):
                total = emit.leaky(builder.fadd(value, bias), slope)
                emit.store(total, emit.at(row, builder.mul(operands.pixel, SIZE(x))))
        return emit.at(products, size), emit.at(biases, size), emit.at(target, size)

    emit.loop(operands.registers, (operands.products, operands.biases, operands.target), transform)


def _backward(emit: Emitter, values: Sequence[ir.Value], outputs: int) -> list[ir.Value]:
    """Emit the sums of values times powers of `POINTS`, and of the last one for the highest power."""
    a, b, c, d, e, f = values
    builder = emit.builder
    near, far = (builder.fadd(b, c), builder.fsub(b, c)), (builder.fadd(d, e), builder.fsub(d, e))
    sums = []
    for power in range(outputs):
        factor = emit.constant(emit.singles, 2.0**power)
        sums.append(_multiply_add(emit, far[power % 2], factor, near[power % 2]))
    sums[0] = builder.fadd(sums[0], a)
    sums[-1] = builder.fadd(sums[-1], f)
    return sums


def _multiply_add(emit: Emitter, a: ir.Value, b: ir.Value, addend: ir.Value) -> ir.Value:
    return emit.call(f"llvm.fma.v{emit.lanes}f32", emit.singles, [a, b, addend])
