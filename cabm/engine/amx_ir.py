"""LLVM code for `cabm.engine.amx`: convolve 32 adjacent pixels by products of tiles.

Two tile registers of 16 pixels and 64 bytes each, times two of 64 bytes and 16 output channels, add to four
of sums: four ``tdpbusd`` for four loads. They keep the tile unit busy for 64 cycles, and nothing else.
So the epilogue of the pixels before is emitted between them, and runs at the same time.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir

from cabm.engine import epilogue
from cabm.engine.emitter import BYTE, HALF, POINTER, SIZE, Emitter
from cabm.engine.epilogue import Row, pixel_by_pixel, splat_numbers
from cabm.engine.layer_numbers import EPILOGUES, Epilogue

LANES = 16
"""Output channels, and pixels, of a tile register."""

PIXELS = 2 * LANES
"""Pixels computed together."""

PRODUCTS = 4
"""The most products of tiles of a step."""

DEPTH = 64
"""Input bytes of a tile register's row."""

SUMS_PIXEL = 4 * 2 * LANES
"""Bytes of the sums of a pixel."""

SUMS, PIXELS_AT, WEIGHTS_AT, TILES = 0, 4, 6, 8
"""Numbers of the first tile register of each use, and of all."""

INTEGERS = {"halves", "row", "pixel", "depths"}

EARLIER = "earlier_"
BOTH_INTEGERS = INTEGERS | {EARLIER + name for name in epilogue.INTEGERS}


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


Both = namedtuple("Both", [*Product._fields, *(EARLIER + name for name in Row._fields)])
"""Operands of `emit_both`: those of a product, and of the epilogue of PIXELS pixels whose sums
were stored before.

The epilogue's ``count`` is the number of pixels that are finished in each step of the product: a power of
two, at least PRODUCTS and at least ``PIXELS / (3 * depths)``. When all pixels are finished, some steps are
left, because 3 divides the number of steps.
"""


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


def emit_both(emit: Emitter, operands: Any) -> None:
    """Emit the same, and between its products the epilogue of the sums before; see `Both`."""
    product, row = Product(*operands[: len(Product._fields)]), Row(*operands[len(Product._fields) :])

    def emit_case(halves: int, end: Epilogue) -> Callable[[], None]:
        def body() -> None:
            pixels = pixel_by_pixel(emit, row, end, halves, splat_numbers(emit, row))
            _emit_sums(emit, product, halves, row, pixels)

        return body

    cases = {
        len(EPILOGUES) * (halves - 1) + number: emit_case(halves, end)
        for halves in (1, 2)
        for number, end in enumerate(EPILOGUES)
        if not end.single
    }
    further = emit.builder.mul(emit.builder.sub(product.halves, SIZE(1)), SIZE(len(EPILOGUES)))
    emit.choose(emit.builder.add(further, row.epilogue), cases)


def _emit_sums(
    emit: Emitter, operands: Product, halves: int, row: Row | None = None, pixels: Any = None
) -> None:
    builder = emit.builder
    size = SIZE(DEPTH * LANES)  # bytes of a tile register
    steps = builder.mul(operands.depths, SIZE(3))
    half = builder.mul(steps, size)
    further = builder.mul(operands.pixel, SIZE(LANES))
    # from the last register of a row of the kernel to the first one of the next
    to_next_row = builder.sub(operands.row, builder.mul(builder.sub(operands.depths, SIZE(1)), SIZE(DEPTH)))
    start_sums(emit, operands.starts, 2, halves)

    def step(_, left, source, weights, *addresses):
        for j in range(2):
            place = emit.at(source, further) if j else source
            call_unit(emit, "tileloadd64", BYTE(PIXELS_AT + j), place, operands.pixel)
            for k in range(halves):
                if j == 0:
                    place = emit.at(weights, half) if k else weights
                    call_unit(emit, "tileloadd64", BYTE(WEIGHTS_AT + k), place, SIZE(DEPTH))
                call_unit(emit, "tdpbusd", sums_at(halves, j, k), BYTE(PIXELS_AT + j), BYTE(WEIGHTS_AT + k))
                if addresses:
                    addresses = emit.loop(between, addresses, pixels[1])
        ends = builder.icmp_unsigned("==", left, SIZE(1))
        left = builder.select(ends, operands.depths, builder.sub(left, SIZE(1)))
        source = emit.at(source, builder.select(ends, to_next_row, SIZE(DEPTH)))
        return left, source, emit.at(weights, size), *addresses

    state = operands.depths, operands.source, operands.weights
    if row is not None:
        shared = builder.udiv(SIZE(PIXELS), row.count)
        between = builder.udiv(row.count, SIZE(2 * halves))
        state = emit.loop(shared, (*state, *pixels[0]), step)[:3]
        steps = builder.sub(steps, shared)
    emit.loop(steps, state, step)
    store_sums(emit, operands.sums, 2, halves)


def start_sums(emit: Emitter, starts: ir.Value, tiles: int, halves: int) -> None:
    """Emit the starts of all sums, 32 bits each."""
    for k in range(halves):
        for j in range(tiles):  # a distance of 0 bytes repeats the row
            place = emit.at(starts, 4 * LANES * k)
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
