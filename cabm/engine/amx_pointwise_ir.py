"""LLVM code for `cabm.engine.amx_pointwise`: products of tiles of bfloat16."""

from __future__ import annotations

from typing import NamedTuple

from llvmlite import ir

from cabm.engine.amx_ir import DEPTH as ROW
from cabm.engine.amx_ir import LANES, PIXELS_AT, WEIGHTS_AT, call_unit, start_sums, store_sums, sums_at
from cabm.engine.emitter import BYTE, SIZE, Emitter

DEPTH = ROW // 2
"""Input numbers of a tile register's row."""

TILE = ROW * LANES
"""Bytes of a tile register."""

PARTS = 2
"""Parts of a weight."""

INTEGERS = {"halves", "pixel", "depths"}


class Product(NamedTuple):
    """Operands of `emit_product`.

    Attributes:
        halves: registers of 16 output channels, 1 or 2.
        source: the first pixel's bfloat16 numbers.
        pixel: bytes from one pixel to the next.
        depths: tile registers that hold a pixel's numbers.
        weights: (halves, depths, PARTS, 16, 16, 2) bfloat16.
        biases: a float32 for each output channel.
        sums: (PIXELS, 2, 16) float32 to write.
    """

    halves: ir.Value
    source: ir.Value
    pixel: ir.Value
    depths: ir.Value
    weights: ir.Value
    biases: ir.Value
    sums: ir.Value


def emit_product(emit: Emitter, operands: Product) -> None:
    """Emit the sums of PIXELS pixels and 16 or 32 output channels."""
    bodies = {halves: lambda h=halves: _emit_sums(emit, operands, h) for halves in (1, 2)}
    emit.choose(operands.halves, bodies)


def _emit_sums(emit: Emitter, operands: Product, halves: int) -> None:
    builder = emit.builder
    half = builder.mul(operands.depths, SIZE(PARTS * TILE))
    further = builder.mul(operands.pixel, SIZE(LANES))
    start_sums(emit, operands.biases, 2, halves)

    def depth(_, source, weights):
        for j in range(2):
            place = source if j == 0 else emit.at(source, further)
            call_unit(emit, "tileloadd64", BYTE(PIXELS_AT + j), place, operands.pixel)
        for part in range(PARTS):
            for k in range(halves):
                place = emit.at(weights, part * TILE)
                place = place if k == 0 else emit.at(place, half)
                call_unit(emit, "tileloadd64", BYTE(WEIGHTS_AT + k), place, SIZE(ROW))
            for j in range(2):
                for k in range(halves):
                    registers = BYTE(PIXELS_AT + j), BYTE(WEIGHTS_AT + k)
                    call_unit(emit, "tdpbf16ps", sums_at(halves, j, k), *registers)
        return emit.at(source, ROW), emit.at(weights, PARTS * TILE)

    emit.loop(operands.depths, (operands.source, operands.weights), depth)
    store_sums(emit, operands.sums, 2, halves)
