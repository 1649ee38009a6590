"""LLVM code for `cabm.engine.vnni`: convolve a few adjacent pixels.

This module has the instructions of x86; `cabm.engine.neon_ir` those of ARM.

The innermost loop keeps all sums in registers: those of several pixels, each with up to four registers of
output channels. It issues one ``vpdpbusd`` per register, which multiplies unsigned by signed bytes and adds
each four products to a 32-bit sum: 64 products at once.
"""

from __future__ import annotations

from typing import NamedTuple

from llvmlite import ir

from cabm.engine import neon_ir
from cabm.engine.emitter import SIZE, WORD, Emitter

REGISTERS = 4
"""Registers of output channels computed together."""

PIXELS = {4: 5, 16: 6}
"""Pixels computed together, by lanes. Sums, weights and inputs take 29 of 32 registers."""


class Operands(NamedTuple):
    """Operands of `emit_convolution`, in order: numbers (`INTEGERS`) or addresses.

    Attributes:
        registers: 1..REGISTERS, registers of output channels.
        count: number of pixels, 1..PIXELS.
        source: upper left byte that the kernel reads for the first pixel.
        row: bytes from one row to the next.
        channels: input channels, a multiple of 4; also the bytes from one pixel to the next.
        weights: (3, 3 * channels / 4, registers * lanes, 4) int8.
        starts: an int32 for each output channel of the group.
        sums: (count, registers * lanes) int32 to write.
    """

    registers: ir.Value
    count: ir.Value
    source: ir.Value
    row: ir.Value
    channels: ir.Value
    weights: ir.Value
    starts: ir.Value
    sums: ir.Value


INTEGERS = {"registers", "count", "row", "channels"}


def emit_convolution(emit: Emitter, operands: Operands) -> None:
    """Emit the sums of a 3x3 convolution of ``count`` adjacent pixels to a group of channels."""
    emit_sums = neon_ir.emit_sums if emit.lanes == neon_ir.LANES else _emit_sums

    def convolve(registers: int, pixels: int) -> None:
        for i, register in enumerate(emit_sums(emit, operands, registers, pixels)):
            emit.store(register, emit.at(operands.sums, 4 * emit.lanes * i))

    shapes = {
        16 * registers + pixels: lambda shape=(registers, pixels): convolve(*shape)
        for registers in range(1, REGISTERS + 1)
        for pixels in range(1, PIXELS[emit.lanes] + 1)
    }
    choice = emit.builder.add(emit.builder.mul(operands.registers, SIZE(16)), operands.count)
    emit.choose(choice, shapes)


def _emit_sums(emit: Emitter, operands: Operands, registers: int, pixels: int) -> list[ir.Value]:
    """Emit the loop over kernel rows and, inside it, over columns and input channels by fours.

    Returns:
        The registers of sums of all pixels.
    """
    builder = emit.builder
    size = 4 * emit.lanes
    quads = builder.udiv(builder.mul(operands.channels, SIZE(3)), SIZE(4))
    offsets = [builder.mul(operands.channels, SIZE(pixel)) for pixel in range(pixels)]
    starts = [emit.load(emit.at(operands.starts, size * k), emit.words) for k in range(registers)] * pixels

    def column(_, source, weights, *sums):
        loaded = [emit.load(emit.at(weights, size * k), emit.words) for k in range(registers)]
        added = []
        for pixel, offset in enumerate(offsets):
            four = emit.splat(emit.load(emit.at(source, offset), WORD))
            for k, register in enumerate(loaded):
                added.append(dot(emit, sums[pixel * registers + k], four, register))
        return emit.at(source, 4), emit.at(weights, size * registers), *added

    def row(_, source, weights, *sums):
        _, weights, *sums = emit.loop(quads, (source, weights, *sums), column)
        return emit.at(source, operands.row), weights, *sums

    return emit.loop(SIZE(3), (operands.source, operands.weights, *starts), row)[2:]


def dot(emit: Emitter, sums: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    """Emit the addition of four products each of unsigned and signed bytes to 32-bit sums."""
    name = f"llvm.x86.avx512.vpdpbusd.{32 * emit.lanes}"  # the one of 256 bits serves AVX-VNNI, too
    return emit.call(name, emit.words, [sums, unsigned, signed])
