"""LLVM code for `cabm.engine.winograd`: transforms and products of a few tiles.

The innermost loop keeps all sums in registers: those of several tiles, each with two registers of output
channels. Each step broadcasts two 16-bit inputs of a tile, multiplies them by two weights of each output
channel and adds the pair: ``vpmaddwd`` and ``vpaddd`` of AVX2 or AVX-512, which LLVM makes one ``vpdpwssd``
where the CPU has VNNI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llvmlite import ir

from cabm.engine.emitter import BYTE, HALF, SIZE, WORD, Emitter

SIDE, POSITIONS = 6, 36
"""Numbers of a transformed tile, along a side and in all."""

PIXELS = 4
"""Outputs of a tile along a side."""

STRIP = 12
"""Tiles transformed together."""

CHUNK = 32
"""Channels of a tile that lie side by side in the transformed input, followed by those of the next tile."""

REGISTERS = 2
"""Registers of output channels computed together."""

INVERSE_OF_9 = 954437177
"""9 times this is 1, modulo 2^32."""

TILES = {8: 6, 16: 12}
"""Tiles multiplied together, by lanes. Sums, weights and products take 16 of 16 or 28 of 32 registers."""


class Input(NamedTuple):
    """Operands of `emit_input`.

    Attributes:
        source: the tile's upper left number.
        row: bytes from one row to the next.
        channels: a multiple of CHUNK; also the numbers from one pixel to the next.
        transformed: int16 (POSITIONS, channels / CHUNK, STRIP, CHUNK), at the tile's first number.
    """

    source: ir.Value
    row: ir.Value
    channels: ir.Value
    transformed: ir.Value


class Product(NamedTuple):
    """Operands of `emit_product`.

    Attributes:
        count: number of tiles, 1..TILES.
        transformed: the first tile's int16 input at one position.
        pairs: half the number of input channels.
        weights: (pairs, 2 * lanes, 2) int16 of the position.
        products: (count, 2 * lanes) int32 to write.
    """

    count: ir.Value
    transformed: ir.Value
    pairs: ir.Value
    weights: ir.Value
    products: ir.Value


class Output(NamedTuple):
    """Operands of `emit_output`.

    Attributes:
        products: (POSITIONS, STRIP, 2 * lanes) int32, at the tile's first number.
        starts: int32 to add: for each output channel, or in the order of ``sums``.
        each: 0 or 1, whether there is one for each pixel.
        sums: (4, 4 * STRIP, 2 * lanes) int32 to write: row, column, channel; at the tile's first number.
    """

    products: ir.Value
    starts: ir.Value
    each: ir.Value
    sums: ir.Value


def emit_input(emit: Emitter, operands: Input) -> None:
    """Emit the transform of 6x6 pixels of all channels, given as bytes."""
    _emit_input(emit, operands, BYTE)


def emit_input_of_halves(emit: Emitter, operands: Input) -> None:
    """Emit the same for pixels of 16-bit numbers."""
    _emit_input(emit, operands, HALF)


def _emit_input(emit: Emitter, operands: Input, number: ir.IntType) -> None:
    builder, width, size = emit.builder, 2 * emit.lanes, number.width // 8
    kind = ir.VectorType(number, width)
    offsets = [
        builder.add(builder.mul(operands.row, SIZE(y)), builder.mul(operands.channels, SIZE(size * x)))
        for y in range(SIDE)
        for x in range(SIDE)
    ]
    position = builder.mul(operands.channels, SIZE(2 * STRIP))

    def transform(_, source, transformed):
        for part in range(0, CHUNK, width):
            here = emit.at(source, size * part)
            pixels = [emit.load(emit.at(here, offset), kind) for offset in offsets]
            if number is BYTE:
                pixels = [builder.zext(pixel, emit.halves) for pixel in pixels]
            columns = [_transform_six(emit, pixels[x::SIDE]) for x in range(SIDE)]
            for y, row in enumerate(zip(*columns, strict=True)):
                for x, value in enumerate(_transform_six(emit, row)):
                    place = builder.add(builder.mul(position, SIZE(SIDE * y + x)), SIZE(2 * part))
                    emit.store(value, emit.at(transformed, place))
        return emit.at(source, size * CHUNK), emit.at(transformed, 2 * CHUNK * STRIP)

    chunks = builder.udiv(operands.channels, SIZE(CHUNK))
    emit.loop(chunks, (operands.source, operands.transformed), transform)


def _transform_six(emit: Emitter, values: Sequence[ir.Value]) -> list[ir.Value]:
    """Emit the product of B^T and six values."""
    add, sub = emit.builder.add, emit.builder.sub
    d0, d1, d2, d3, d4, d5 = values
    even, odd = sub(d4, _times(emit, d2, 4)), sub(d3, _times(emit, d1, 4))
    near, twice = sub(d4, d2), _times(emit, sub(d3, d1), 2)
    first = add(_times(emit, sub(d0, d2), 4), near)
    last = sub(sub(d5, d3), _times(emit, twice, 2))
    return [first, add(even, odd), sub(even, odd), add(near, twice), sub(near, twice), last]


def _times(emit: Emitter, value: ir.Value, factor: int) -> ir.Value:
    """Emit a product with a power of two."""
    return emit.builder.shl(value, emit.constant(value.type, factor.bit_length() - 1))


def emit_product(emit: Emitter, operands: Product) -> None:
    """Emit the products of ``count`` tiles at one position with the weights of 2 * lanes channels."""
    builder = emit.builder
    size = 4 * emit.lanes

    def multiply(tiles: int) -> None:
        def step(index, weights, *sums):
            chunk = builder.mul(builder.lshr(index, SIZE(4)), SIZE(2 * CHUNK * STRIP))
            offset = builder.add(chunk, builder.mul(builder.and_(index, SIZE(15)), SIZE(4)))
            source = emit.at(operands.transformed, offset)
            registers = [emit.load(emit.at(weights, size * k), emit.halves) for k in range(REGISTERS)]
            added = []
            for tile in range(tiles):
                two = emit.splat(emit.load(emit.at(source, 2 * CHUNK * tile), WORD))
                for k, register in enumerate(registers):
                    product = emit.multiply_pairs(builder.bitcast(two, emit.halves), register)
                    added.append(builder.add(sums[REGISTERS * tile + k], product))
            return emit.at(weights, size * REGISTERS), *added

        zeros = [emit.constant(emit.words, 0)] * (REGISTERS * tiles)
        _, *sums = emit.loop(operands.pairs, (operands.weights, *zeros), step)
        for i, register in enumerate(sums):
            emit.store(register, emit.at(operands.products, size * i))

    sizes = range(1, TILES[emit.lanes] + 1)
    emit.choose(operands.count, {tiles: lambda tiles=tiles: multiply(tiles) for tiles in sizes})


def emit_output(emit: Emitter, operands: Output) -> None:
    """Emit the transform of one tile's products to the sums of its 4x4 pixels."""
    builder, size = emit.builder, 4 * emit.lanes
    pixel = REGISTERS * size
    inverse, bits = emit.constant(emit.words, INVERSE_OF_9), emit.constant(emit.words, 6)
    for k in range(REGISTERS):
        products = [
            emit.load(emit.at(operands.products, pixel * STRIP * position + size * k), emit.words)
            for position in range(POSITIONS)
        ]
        columns = [_gather_six(emit, products[x::SIDE]) for x in range(SIDE)]
        for y, row in enumerate(zip(*columns, strict=True)):
            for x, value in enumerate(_gather_six(emit, row)):
                offset = pixel * (PIXELS * STRIP * y + x)
                start = emit.at(operands.starts, builder.mul(operands.each, SIZE(offset)))
                start = emit.load(emit.at(start, size * k), emit.words)
                value = builder.ashr(builder.mul(value, inverse), bits)
                emit.store(builder.add(value, start), emit.at(operands.sums, offset + size * k))


def _gather_six(emit: Emitter, values: Sequence[ir.Value]) -> list[ir.Value]:
    """Emit 24 times the product of A^T and six values, products with kernels transformed by `KERNEL`."""
    add, sub = emit.builder.add, emit.builder.sub
    m0, m1, m2, m3, m4, m5 = values
    sum1, difference1, sum2, difference2 = add(m1, m2), sub(m1, m2), add(m3, m4), sub(m3, m4)
    four = _times(emit, sum1, 4)
    six = add(_times(emit, m0, 4), _times(emit, m0, 2))
    twice, again = _times(emit, difference2, 2), _times(emit, difference1, 4)
    last = add(_times(emit, m5, 16), _times(emit, m5, 8))
    return [
        add(add(six, four), sum2),
        add(again, twice),
        add(four, _times(emit, sum2, 4)),
        add(add(again, _times(emit, twice, 4)), last),
    ]
