"""LLVM code for `cabm.engine.amx`: convolve 32 adjacent pixels by products of tiles.

Two tile registers of 16 pixels and 64 bytes each, times two of 64 bytes and 16 output channels, add to four
of sums: four ``tdpbusd`` for four loads.
"""

from __future__ import annotations

from typing import NamedTuple

from llvmlite import ir

from cabm.engine.emitter import BYTE, HALF, POINTER, SIZE, Emitter

LANES = 16
"""Output channels, and pixels, of a tile register."""

PIXELS = 2 * LANES
"""Pixels computed together."""

DEPTH = 64
"""Input bytes of a tile register's row."""

SUMS_PIXEL = 4 * 2 * LANES
"""Bytes of the sums of a pixel."""

SUMS, PIXELS_AT, WEIGHTS_AT, TILES = 0, 4, 6, 8
"""Numbers of the first tile register of each use, and of all."""

INTEGERS = {"halves", "row", "pixel", "depths"}


class Configuration(NamedTuple):
    """Operands of `emit_configuration`.

    Attributes:
        memory: 64 bytes that are overwritten.
    """

    memory: ir.Value


class Product(NamedTuple):
    """Operands of `emit_product`.

    Attributes:
        halves: registers of 16 output channels, 1 or 2.
        source: upper left byte that the kernel reads for the first pixel.
        row, pixel: bytes from one row, and from one pixel, to the next.
        depths: tile registers that hold a row of the kernel.
        weights: (halves, 3, depths, 16, 16, 4) int8.
        starts: an int32 for each output channel.
        sums: (PIXELS, 2, 16) int32 to write.
    """

    halves: ir.Value
    source: ir.Value
    row: ir.Value
    pixel: ir.Value
    depths: ir.Value
    weights: ir.Value
    starts: ir.Value
    sums: ir.Value


def emit_configuration(emit: Emitter, operands: Configuration) -> None:
    """Emit the configuration: eight registers of 16 rows of 64 bytes."""
    zeros = ir.Constant(ir.ArrayType(BYTE, 64), [0] * 64)
    emit.store(zeros, operands.memory)
    emit.store(BYTE(1), operands.memory)
    for tile in range(TILES):
        emit.store(HALF(DEPTH), emit.at(operands.memory, 16 + 2 * tile))
        emit.store(BYTE(LANES), emit.at(operands.memory, 48 + tile))
    call_unit(emit, "ldtilecfg", operands.memory)


def emit_release(emit: Emitter, operands: Configuration) -> None:
    """Emit the release of the registers, which other programs' code may have to save otherwise."""
    call_unit(emit, "tilerelease")


def emit_product(emit: Emitter, operands: Product) -> None:
    """Emit the sums of 32 pixels and 16 or 32 output channels."""
    emit.choose(
        operands.halves, {halves: lambda h=halves: _emit_sums(emit, operands, h) for halves in (1, 2)}
    )


def _emit_sums(emit: Emitter, operands: Product, halves: int) -> None:
    builder = emit.builder
    size = SIZE(DEPTH * LANES)  # bytes of a tile register
    half = builder.mul(builder.mul(operands.depths, SIZE(3)), size)
    further = builder.mul(operands.pixel, SIZE(LANES))
    start_sums(emit, operands.starts, operands.sums, 2, halves)

    def depth(_, source, weights):
        for j in range(2):
            place = source if j == 0 else emit.at(source, further)
            call_unit(emit, "tileloadd64", BYTE(PIXELS_AT + j), place, operands.pixel)
        for k in range(halves):
            place = weights if k == 0 else emit.at(weights, half)
            call_unit(emit, "tileloadd64", BYTE(WEIGHTS_AT + k), place, SIZE(DEPTH))
        for j in range(2):
            for k in range(halves):
                call_unit(emit, "tdpbusd", sums_at(halves, j, k), BYTE(PIXELS_AT + j), BYTE(WEIGHTS_AT + k))
        return emit.at(source, DEPTH), emit.at(weights, size)

    def row(_, source, weights):
        _, weights = emit.loop(operands.depths, (source, weights), depth)
        return emit.at(source, operands.row), weights

    emit.loop(SIZE(3), (operands.source, operands.weights), row)
    store_sums(emit, operands.sums, 2, halves)


def start_sums(emit: Emitter, starts: ir.Value, sums: ir.Value, tiles: int, halves: int) -> None:
    """Emit the starts of all sums, 32 bits each, by way of the memory of the first pixel's sums."""
    for k in range(halves):
        place = emit.at(sums, 4 * LANES * k)
        emit.store(emit.load(emit.at(starts, 4 * LANES * k), emit.words), place)
        for j in range(tiles):  # a distance of 0 bytes repeats the row
            call_unit(emit, "tileloadd64", sums_at(halves, j, k), place, SIZE(0))


def store_sums(emit: Emitter, sums: ir.Value, tiles: int, halves: int) -> None:
    """Emit the stores of all sums to memory, (pixels, 2, 16)."""
    for j in range(tiles):
        for k in range(halves):
            place = emit.at(sums, 4 * LANES * k + SUMS_PIXEL * LANES * j)
            call_unit(emit, "tilestored64", sums_at(halves, j, k), place, SIZE(SUMS_PIXEL))


def sums_at(halves: int, j: int, k: int) -> ir.Constant:
    """Return the tile register of the sums of pixel tile ``j`` and of half ``k`` of the output channels."""
    return BYTE(SUMS + halves * j + k)


def call_unit(emit: Emitter, name: str, *arguments: ir.Value) -> None:
    """Call one of LLVM's functions for the tile registers."""
    name = f"llvm.x86.{name}"
    function = emit.builder.module.globals.get(name)
    if function is None:
        kinds = [POINTER if each.type == POINTER else each.type for each in arguments]
        function = ir.Function(emit.builder.module, ir.FunctionType(ir.VoidType(), kinds), name=name)
    emit.builder.call(function, arguments)
