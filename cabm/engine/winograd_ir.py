"""LLVM code for `cabm.engine.winograd`: transforms and products of a few tiles.

The innermost loop keeps all sums in registers: those of several tiles, each with two registers of output
channels. Each step broadcasts two 16-bit inputs of a tile, multiplies them by two weights of each output
channel and adds the pair: ``vpmaddwd`` and ``vpaddd`` of AVX2 or AVX-512.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir

from cabm.engine.emitter import SIZE, WORD, Emitter

POSITIONS = 16
"""Numbers of a transformed tile, 4x4."""

STRIP = 12
"""Tiles transformed together."""

CHUNK = 32
"""Channels of a tile that lie side by side in the transformed input, followed by those of the next tile."""

REGISTERS = 2
"""Registers of output channels computed together."""

TILES = {8: 6, 16: 12}
"""Tiles multiplied together, by lanes. Sums, weights and products take 16 of 16 or 28 of 32 registers."""


class Input(NamedTuple):
    """Operands of `emit_input`.

    Attributes:
        source: the tile's upper left byte.
        row: bytes from one row to the next.
        channels: a multiple of CHUNK; also the bytes from one pixel to the next.
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
        starts: an int32 for each output channel, added to the sums.
        sums: (2, 2 * STRIP, 2 * lanes) int32 to write: row, column, channel; at the tile's first number.
    """

    products: ir.Value
    starts: ir.Value
    sums: ir.Value


def emit_input(emit: Emitter, operands: Input) -> None:
    """Emit the transform of 4x4 pixels of all channels."""
    kind = ir.VectorType(ir.IntType(8), 2 * emit.lanes)
    transform_tile(
        emit, operands, kind, lambda pixels: emit.builder.zext(pixels, emit.halves), lambda _, value: value
    )


def transform_tile(
    emit: Emitter,
    operands: Any,
    kind: ir.VectorType,
    widen: Callable[[ir.Value], ir.Value],
    finish: Callable[[int, ir.Value], ir.Value],
) -> None:
    """Emit the transform of 4x4 pixels of all channels.

    Args:
        emit: at the place to emit.
        operands: ``source``, ``row``, ``channels`` and ``transformed``, as in `Input`.
        kind: of the bytes of a pixel that are loaded at once; divides CHUNK.
        widen: makes a register of numbers of them.
        finish: called with each position and its register; makes what is stored.
    """
    builder, width = emit.builder, kind.count
    offsets = [
        builder.add(builder.mul(operands.row, SIZE(y)), builder.mul(operands.channels, SIZE(x)))
        for y in range(4)
        for x in range(4)
    ]
    size = widen(ir.Constant(kind, ir.Undefined)).type.element.width // 8
    position = builder.mul(operands.channels, SIZE(size * STRIP))

    def transform(_, source, transformed):
        for part in range(0, CHUNK, width):
            here = emit.at(source, part)
            pixels = [widen(emit.load(emit.at(here, offset), kind)) for offset in offsets]
            columns = [_transform_four(builder, pixels[x::4]) for x in range(4)]
            for y, row in enumerate(zip(*columns, strict=True)):
                for x, value in enumerate(_transform_four(builder, row)):
                    place = builder.add(builder.mul(position, SIZE(4 * y + x)), SIZE(size * part))
                    emit.store(finish(4 * y + x, value), emit.at(transformed, place))
        return emit.at(source, CHUNK), emit.at(transformed, size * CHUNK * STRIP)

    chunks = builder.udiv(operands.channels, SIZE(CHUNK))
    emit.loop(chunks, (operands.source, operands.transformed), transform)


def _transform_four(builder: ir.IRBuilder, values) -> list[ir.Value]:
    a, b, c, d = values
    return [builder.sub(a, c), builder.add(b, c), builder.sub(c, b), builder.sub(b, d)]


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
    """Emit the transform of one tile's products to the sums of its 2x2 pixels."""
    builder, size = emit.builder, 4 * emit.lanes
    pixel = REGISTERS * size
    for k in range(REGISTERS):
        start = emit.load(emit.at(operands.starts, size * k), emit.words)
        products = [
            emit.load(emit.at(operands.products, pixel * STRIP * position + size * k), emit.words)
            for position in range(POSITIONS)
        ]
        columns = [_gather_four(builder, products[x::4]) for x in range(4)]
        for y, row in enumerate(zip(*columns, strict=True)):
            for x, value in enumerate(_gather_four(builder, row)):
                place = emit.at(operands.sums, pixel * (2 * STRIP * y + x) + size * k)
                emit.store(builder.add(value, start), place)


def _gather_four(builder: ir.IRBuilder, values) -> list[ir.Value]:
    a, b, c, d = values
    return [builder.add(builder.add(a, b), c), builder.sub(builder.sub(b, c), d)]
