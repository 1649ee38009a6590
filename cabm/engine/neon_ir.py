"""LLVM code for the direct form on ARM: sums of byte products by NEON with dot products.

``sdot`` multiplies signed bytes and adds each four products to a 32-bit sum, 16 products at once; one
operand can be any four bytes of a register. Image bytes are unsigned: less `OFFSET` they are signed, and
the sums start from what that takes away.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from cabm.engine.emitter import BYTE, SIZE, Emitter

LANES = 4
"""32-bit numbers per register."""

OFFSET = 128
"""Subtracted from the bytes of images."""

CHUNK = 16
"""Channels of a pixel loaded at once; channels are a multiple of it."""


def emit_sums(emit: Emitter, operands: Any, registers: int, pixels: int) -> list[ir.Value]:
    """Emit the loop over kernel rows and, inside it, over columns and input channels by CHUNK.

    Args:
        emit: at the place to emit.
        operands: see `cabm.engine.vnni_ir.Operands`.
        registers: registers of output channels.
        pixels: number of adjacent pixels.

    Returns:
        The registers of sums of all pixels.
    """
    builder, size = emit.builder, CHUNK
    kind = ir.VectorType(BYTE, CHUNK)
    offset = emit.constant(kind, OFFSET)
    chunks = builder.udiv(builder.mul(operands.channels, SIZE(3)), SIZE(CHUNK))
    offsets = [builder.mul(operands.channels, SIZE(pixel)) for pixel in range(pixels)]
    starts = [emit.load(emit.at(operands.starts, size * k), emit.words) for k in range(registers)] * pixels

    def column(_, source, weights, *sums):
        sums = list(sums)
        inputs = [builder.xor(emit.load(emit.at(source, each), kind), offset) for each in offsets]
        for quad in range(CHUNK // 4):
            places = [emit.at(weights, size * (registers * quad + k)) for k in range(registers)]
            loaded = [emit.load(place, kind) for place in places]
            for pixel, sixteen in enumerate(inputs):
                four = _repeat_quad(emit, sixteen, quad)
                for k, register in enumerate(loaded):
                    place = pixel * registers + k
                    sums[place] = _dot(emit, sums[place], register, four)
        return emit.at(source, CHUNK), emit.at(weights, size * registers * CHUNK // 4), *sums

    def row(_, source, weights, *sums):
        _, weights, *sums = emit.loop(chunks, (source, weights, *sums), column)
        return emit.at(source, operands.row), weights, *sums

    return emit.loop(SIZE(3), (operands.source, operands.weights, *starts), row)[2:]


def _repeat_quad(emit: Emitter, sixteen: ir.Value, quad: int) -> ir.Value:
    """Fill a register with four bytes of another; LLVM makes this an operand of ``sdot``."""
    words = emit.builder.bitcast(sixteen, emit.words)
    four = emit.builder.shuffle_vector(words, words, emit.constant(emit.words, quad))
    return emit.builder.bitcast(four, sixteen.type)


def _dot(emit: Emitter, sums: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    return emit.call("llvm.aarch64.neon.sdot.v4i32.v16i8", emit.words, [sums, a, b])
