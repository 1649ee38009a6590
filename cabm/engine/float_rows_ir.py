"""LLVM code for `cabm.engine.float_rows`: products of tiles of bfloat16, and the end of a layer.

A tile register holds 16 pixels of 32 numbers, or the weights of 32 numbers and 16 output channels;
``tdpbf16ps`` adds the products of two to 16 times 16 sums in float32.
"""

from __future__ import annotations

from typing import NamedTuple

from llvmlite import ir
from llvmlite.binding import initialize_native_asmparser

from cabm.engine.amx_ir import (
    DEPTH,
    LANES,
    PIXELS_AT,
    SUMS_PIXEL,
    WEIGHTS_AT,
    call_unit,
    start_sums,
    store_sums,
    sums_at,
)
from cabm.engine.emitter import BYTE, HALF, SIZE, Emitter

SHAPES = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2))
"""Tiles of pixels, and of output channels, that are computed together."""

BLOCK = 4 * LANES
"""The most pixels computed together."""

PRODUCT_INTEGERS = {"shape", "offset", "pixel", "taps", "depths"}
END_INTEGERS = {"shape", "count", "addend_pixel", "target_pixel"}
NARROW, ADDS = 2, 4
"""Of the shape of an end; see `End`."""


class Product(NamedTuple):
    """Operands of `emit_product`.

    Attributes:
        shape: 8 times the tiles of pixels plus the tiles of output channels, one of `SHAPES`.
        rows: an int64 address for each row of the kernel.
        offset: bytes from there to the first number that the kernel reads for the first pixel.
        pixel: bytes from one pixel to the next.
        taps: rows of the kernel.
        depths: tile registers that hold a row of the kernel.
        weights: (tiles, taps, depths, 16, 16, 2) bfloat16.
        biases: a float32 for each output channel.
        sums: (pixels, 2, 16) float32 to write.
    """

    shape: ir.Value
    rows: ir.Value
    offset: ir.Value
    pixel: ir.Value
    taps: ir.Value
    depths: ir.Value
    weights: ir.Value
    biases: ir.Value
    sums: ir.Value


class End(NamedTuple):
    """Operands of `emit_end`.

    Attributes:
        shape: tiles of output channels, 1 or 2, plus 2 to write bfloat16 instead of float32, plus 4 to add.
        count: pixels.
        sums: float32 for each pixel, `SUMS_PIXEL` bytes apart.
        addend: float32 to add for each pixel.
        addend_pixel: bytes from one pixel to the next there.
        slope: address of a float32 that negative results are multiplied by.
        target: numbers to write for each pixel.
        target_pixel: bytes from one pixel to the next there.
    """

    shape: ir.Value
    count: ir.Value
    sums: ir.Value
    addend: ir.Value
    addend_pixel: ir.Value
    slope: ir.Value
    target: ir.Value
    target_pixel: ir.Value


def emit_product(emit: Emitter, operands: Product) -> None:
    """Emit the sums of up to 64 pixels and 16 or 32 output channels."""
    bodies = {8 * t + h: lambda t=t, h=h: _emit_sums(emit, operands, t, h) for t, h in SHAPES}
    emit.choose(operands.shape, bodies)


def _emit_sums(emit: Emitter, operands: Product, tiles: int, halves: int) -> None:
    builder = emit.builder
    size = SIZE(DEPTH * LANES)  # bytes of a tile register
    half = builder.mul(builder.mul(operands.depths, operands.taps), size)
    further = [builder.mul(operands.pixel, SIZE(LANES * j)) for j in range(tiles)]
    start_sums(emit, operands.biases, tiles, halves)

    def depth(_, source, weights):
        for k in range(halves):
            place = weights if k == 0 else emit.at(weights, half)
            call_unit(emit, "tileloadd64", BYTE(WEIGHTS_AT + k), place, SIZE(DEPTH))
        for j in range(tiles):
            register = BYTE(PIXELS_AT + j % 2)
            call_unit(emit, "tileloadd64", register, emit.at(source, further[j]), operands.pixel)
            for k in range(halves):
                call_unit(emit, "tdpbf16ps", sums_at(halves, j, k), register, BYTE(WEIGHTS_AT + k))
        return emit.at(source, DEPTH), emit.at(weights, size)

    def row(_, rows, weights):
        source = emit.at(emit.pointer(emit.load(rows, SIZE)), operands.offset)
        _, weights = emit.loop(operands.depths, (source, weights), depth)
        return emit.at(rows, 8), weights

    emit.loop(operands.taps, (operands.rows, operands.weights), row)
    store_sums(emit, operands.sums, tiles, halves)


def emit_end(emit: Emitter, operands: End) -> None:
    """Emit what follows the sums of 16 or 32 output channels: add, activate, round to bfloat16, write."""
    shapes = range(1, ADDS + NARROW + 3)
    emit.choose(
        operands.shape, {shape: lambda s=shape: _emit_pixels(emit, operands, s) for shape in shapes}
    )


def _emit_pixels(emit: Emitter, operands: End, shape: int) -> None:
    builder = emit.builder
    slope = emit.splat(emit.load(operands.slope, emit.singles.element))
    halves = 2 - shape % 2

    def pixel(_, sums, addend, target):
        values = []
        for offset in range(0, 4 * LANES * halves, 4 * LANES):
            value = emit.load(emit.at(sums, offset), emit.singles)
            if shape - halves & ADDS:
                value = builder.fadd(value, emit.load(emit.at(addend, offset), emit.singles))
            values.append(emit.leaky(value, slope))
        if shape - halves & NARROW:
            emit.store(_to_bfloat16(emit, values), target)
        else:
            for index, value in enumerate(values):
                emit.store(value, emit.at(target, 4 * LANES * index))
        places = (SIZE(SUMS_PIXEL), operands.addend_pixel, operands.target_pixel)
        return [emit.at(at, step) for at, step in zip((sums, addend, target), places, strict=True)]

    emit.loop(operands.count, (operands.sums, operands.addend, operands.target), pixel)


def _to_bfloat16(emit: Emitter, values: list[ir.Value]) -> ir.Value:
    """Emit the rounding of one or two registers to nearest even; the results are 16-bit numbers.

    The instruction is given as text, because llvmlite has no type for bfloat16.
    """
    initialize_native_asmparser()
    name = {1: "vcvtneps2bf16 $1, $0", 2: "vcvtne2ps2bf16 $1, $2, $0"}[len(values)]
    kind = ir.FunctionType(ir.VectorType(HALF, LANES * len(values)), [emit.singles] * len(values))
    code = ir.InlineAsm(kind, name, ",".join(["=v", *"v" * len(values)]))
    return emit.builder.call(code, values)
