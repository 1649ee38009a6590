"""LLVM code for `cabm.engine.narrow`: the transform of inputs, and products, on bytes."""

from __future__ import annotations

from typing import NamedTuple

from llvmlite import ir

from cabm.engine.emitter import BYTE, WORD, Emitter
from cabm.engine.winograd_ir import CHUNK, REGISTERS, STRIP, transform_tile

SHIFT = 32
"""Added to transformed inputs, which makes them positive."""

SUM = 5
"""The position whose input is the sum of four codes."""

QUAD = 4
"""Channels multiplied by one instruction: two pairs, each added in 16 bits."""

STEP = 4
"""Quads added in 16 bits, before they are added in 32 bits."""

TILES = {8: 2, 16: 4}
"""Tiles multiplied together, by lanes. Sums of 32 and of 16 bits, weights, an input, a product and ones
take 13 of 16 or 21 of 32 registers; with more tiles LLVM keeps some of them in memory."""


class Input(NamedTuple):
    """Operands of `emit_input`.

    Attributes:
        source: the tile's upper left byte.
        row: bytes from one row to the next.
        channels: a multiple of CHUNK; also the bytes from one pixel to the next.
        shift: added at the position `SUM`; `SHIFT` at the others.
        transformed: uint8 (POSITIONS, channels / CHUNK, STRIP, CHUNK), at the tile's first number.
    """

    source: ir.Value
    row: ir.Value
    channels: ir.Value
    shift: ir.Value
    transformed: ir.Value


class Product(NamedTuple):
    """Operands of `emit_product`.

    Attributes:
        count: number of tiles, 1..TILES.
        transformed: the first tile's input at one position.
        chunks: the number of input channels over CHUNK.
        weights: of the position; see `cabm.engine.narrow.pack`.
        products: (count, 2 * lanes) int32 to write.
    """

    count: ir.Value
    transformed: ir.Value
    chunks: ir.Value
    weights: ir.Value
    products: ir.Value


def emit_input(emit: Emitter, operands: Input) -> None:
    """Emit the transform of 4x4 pixels of all channels; numbers wrap, so the byte of code 0 drops out."""
    builder = emit.builder
    kind = ir.VectorType(BYTE, CHUNK)
    nothing, first = ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(WORD, CHUNK), [0] * CHUNK)
    single = builder.insert_element(nothing, builder.trunc(operands.shift, BYTE), WORD(0))
    of_sum = builder.shuffle_vector(single, nothing, first)
    others = emit.constant(kind, SHIFT)

    def shifted(position: int, value: ir.Value) -> ir.Value:
        return builder.add(value, of_sum if position == SUM else others)

    transform_tile(emit, operands, kind, lambda pixels: pixels, shifted)


def emit_product(emit: Emitter, operands: Product) -> None:
    """Emit the products of ``count`` tiles at one position with the weights of 2 * lanes channels."""
    size = 4 * emit.lanes

    def multiply(tiles: int) -> None:
        def add_chunk(_, source, weights, *sums):
            for first in range(0, CHUNK, QUAD * STEP):
                here = emit.at(weights, size * REGISTERS * first // QUAD)
                sums = _add_step(emit, emit.at(source, first), here, sums)
            weights = emit.at(weights, size * REGISTERS * CHUNK // QUAD)
            return emit.at(source, CHUNK * STRIP), weights, *sums

        starts = [emit.load(emit.at(operands.weights, size * k), emit.words) for k in range(REGISTERS)]
        weights = emit.at(operands.weights, size * REGISTERS)
        firsts = operands.transformed, weights, *(starts * tiles)
        _, _, *sums = emit.loop(operands.chunks, firsts, add_chunk)
        for i, register in enumerate(sums):
            emit.store(register, emit.at(operands.products, size * i))

    sizes = range(1, TILES[emit.lanes] + 1)
    emit.choose(operands.count, {tiles: lambda tiles=tiles: multiply(tiles) for tiles in sizes})


def _add_step(emit: Emitter, source: ir.Value, weights: ir.Value, sums: tuple) -> list[ir.Value]:
    """Add STEP quads of each tile, at ``source`` and CHUNK bytes further, to its registers of sums."""
    builder, size = emit.builder, 4 * emit.lanes
    pairs: list[ir.Value | None] = [None] * len(sums)
    for quad in range(STEP):
        registers = [
            emit.load(emit.at(weights, size * (REGISTERS * quad + k)), emit.words) for k in range(REGISTERS)
        ]
        for i, before in enumerate(pairs):
            tile, k = divmod(i, REGISTERS)
            four = emit.splat(emit.load(emit.at(source, CHUNK * tile + QUAD * quad), WORD))
            products = _multiply_bytes(emit, four, registers[k])
            pairs[i] = products if before is None else builder.add(before, products)
    ones = emit.constant(emit.halves, 1)
    return [
        builder.add(before, emit.multiply_pairs(pair, ones))
        for before, pair in zip(sums, pairs, strict=True)
    ]


def _multiply_bytes(emit: Emitter, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    name = {8: "llvm.x86.avx2.pmadd.ub.sw", 16: "llvm.x86.avx512.pmaddubs.w.512"}[emit.lanes]
    kind = ir.VectorType(BYTE, QUAD * emit.lanes)
    operands = [emit.builder.bitcast(each, kind) for each in (unsigned, signed)]
    return emit.call(name, emit.halves, operands)
