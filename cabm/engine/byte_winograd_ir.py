"""LLVM code for `cabm.engine.byte_winograd`: what follows the sums of a band."""

from __future__ import annotations

from typing import NamedTuple

from llvmlite import ir

from cabm.engine.emitter import SINGLE, WORD, Emitter
from cabm.engine.winograd_ir import REGISTERS

INTEGERS = {"adds", "count", "minus", "addend_pixel", "target_pixel"}


class End(NamedTuple):
    """Operands of `emit_end`.

    Attributes:
        adds: 0 or 1, whether there is an addend.
        count: pixels.
        sums: (count, REGISTERS * lanes) int32.
        minus: minus the zero of the bytes that were multiplied.
        scale: address of their scale, float32.
        columns: an int32 for each output channel, the sum of its weights.
        scales: a float32 for each output channel, the scale of its weights.
        biases: a float32 for each output channel.
        addend: float32 to add for each pixel.
        addend_pixel: bytes from one pixel to the next there.
        slope: address of a float32 that negative results are multiplied by.
        target: float32 to write for each pixel.
        target_pixel: bytes from one pixel to the next there.
    """

    adds: ir.Value
    count: ir.Value
    sums: ir.Value
    minus: ir.Value
    scale: ir.Value
    columns: ir.Value
    scales: ir.Value
    biases: ir.Value
    addend: ir.Value
    addend_pixel: ir.Value
    slope: ir.Value
    target: ir.Value
    target_pixel: ir.Value


def emit_end(emit: Emitter, operands: End) -> None:
    """Emit the end of some pixels: scale, add, activate, write."""
    emit.choose(
        operands.adds, {adds: lambda adds=adds: _emit_pixels(emit, operands, adds) for adds in (0, 1)}
    )


def _emit_pixels(emit: Emitter, operands: End, adds: int) -> None:
    builder, size = emit.builder, 4 * emit.lanes
    offsets = [size * k for k in range(REGISTERS)]
    minus = emit.splat(builder.trunc(operands.minus, WORD))
    scale, slope = (emit.splat(emit.load(each, SINGLE)) for each in (operands.scale, operands.slope))
    starts = [builder.mul(minus, emit.load(emit.at(operands.columns, at), emit.words)) for at in offsets]
    factors = [builder.fmul(scale, emit.load(emit.at(operands.scales, at), emit.singles)) for at in offsets]
    biases = [emit.load(emit.at(operands.biases, at), emit.singles) for at in offsets]

    def pixel(_, sums, addend, target):
        for at, start, factor, bias in zip(offsets, starts, factors, biases, strict=True):
            whole = builder.add(emit.load(emit.at(sums, at), emit.words), start)
            value = emit.multiply_add(builder.sitofp(whole, emit.singles), factor, bias)
            if adds:
                value = builder.fadd(value, emit.load(emit.at(addend, at), emit.singles))
            emit.store(emit.leaky(value, slope), emit.at(target, at))
        steps = (size * REGISTERS, operands.addend_pixel, operands.target_pixel)
        return [emit.at(at, step) for at, step in zip((sums, addend, target), steps, strict=True)]

    emit.loop(operands.count, (operands.sums, operands.addend, operands.target), pixel)
