"""A 1x1 convolution of float32 images as a step: the fusions of CARN and the compressions of IDN.

It is written in LLVM's own language without instructions of one processor, so every form has it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic, overload

from cabm.engine.arrays import groups_of
from cabm.engine.emitter import SINGLE, SIZE, Emitter, typed_call
from cabm.engine.finishing import finish

PIXELS = 6
"""Pixels computed together."""

REGISTERS = {4: 4, 8: 2, 16: 4}
"""Registers of output channels computed together, by lanes."""


class Operands(NamedTuple):
    """Operands of `emit_sums`.

    Attributes:
        registers: 1..REGISTERS, registers of output channels.
        count: number of pixels, 1..PIXELS.
        source: the first pixel's float32.
        pixel: bytes from one pixel to the next.
        channels: number of input channels.
        weights: (channels, registers * lanes) float32.
        biases: a float32 for each output channel.
        sums: (count, registers * lanes) float32 to write.
    """

    registers: ir.Value
    count: ir.Value
    source: ir.Value
    pixel: ir.Value
    channels: ir.Value
    weights: ir.Value
    biases: ir.Value
    sums: ir.Value


def pack(weight: np.ndarray, lanes: int) -> np.ndarray:
    """Return float32 weights for (O,I), in groups of up to REGISTERS; a group of g channels is (I, g)."""
    groups = groups_of(weight.astype(np.float32), REGISTERS[lanes] * lanes)
    return np.concatenate([group.T.reshape(-1) for group in groups])


def emit_sums(emit: Emitter, operands: Operands) -> None:
    """Emit the sums of ``count`` adjacent pixels."""
    shapes = {
        16 * registers + pixels: lambda shape=(registers, pixels): _emit_shape(emit, operands, *shape)
        for registers in range(1, REGISTERS[emit.lanes] + 1)
        for pixels in range(1, PIXELS + 1)
    }
    choice = emit.builder.add(emit.builder.mul(operands.registers, SIZE(16)), operands.count)
    emit.choose(choice, shapes)


def _emit_shape(emit: Emitter, operands: Operands, registers: int, pixels: int) -> None:
    builder, size = emit.builder, 4 * emit.lanes
    offsets = [builder.mul(operands.pixel, SIZE(pixel)) for pixel in range(pixels)]
    biases = [
        emit.load(emit.at(operands.biases, size * k), emit.singles) for k in range(registers)
    ] * pixels

    def channel(_, source, weights, *sums):
        loaded = [emit.load(emit.at(weights, size * k), emit.singles) for k in range(registers)]
        added = []
        for pixel, offset in enumerate(offsets):
            value = emit.splat(emit.load(emit.at(source, offset), SINGLE))
            for k, register in enumerate(loaded):
                operand = [value, register, sums[pixel * registers + k]]
                added.append(emit.call(f"llvm.fma.v{emit.lanes}f32", emit.singles, operand))
        return emit.at(source, 4), emit.at(weights, size * registers), *added

    sums = emit.loop(operands.channels, (operands.source, operands.weights, *biases), channel)[2:]
    for i, register in enumerate(sums):
        emit.store(register, emit.at(operands.sums, size * i))


@intrinsic(prefer_literal=True)
def sum_pixels(_, lanes, registers, count, source, pixel, channels, weights, biases, sums):
    """Compute adjacent pixels; see `Operands`."""
    return typed_call(lanes, Operands, {"registers", "count", "pixel", "channels"}, emit_sums)


def run_pointwise(lanes, layer, image, ends, scratch):
    """Convolve all pixels of an image of float32; arguments as in `cabm.engine.steps.step_loop`.

    ``layer`` holds the biases in place of the starts; ``image`` the first pixel's address and the bytes
    from one pixel and from one row to the next, height and width.
    """
    raise NotImplementedError("only compiled loops call this")


@overload(run_pointwise, prefer_literal=True)
def _run_pointwise(lanes, layer, image, ends, scratch):
    size = lanes.literal_value
    most = REGISTERS[size]

    def loop(lanes, layer, image, ends, scratch):
        weights, biases, inputs, outputs = layer
        source, pixel, row, height, width = image
        for y in range(height):
            x = 0
            for left in range(-(-width // PIXELS), 0, -1):
                count = -(-(width - x) // left)  # as even as possible
                for first in range(0, outputs, most * size):
                    registers = min(most, (outputs - first) // size)
                    sum_pixels(
                        lanes,
                        registers,
                        count,
                        source + y * row + x * pixel,
                        pixel,
                        inputs,
                        weights + 4 * first * inputs,
                        biases + 4 * first,
                        scratch,
                    )
                    finish(lanes, registers, count, scratch, 4 * size * registers, first, y, x, ends)
                x += count

    return loop
