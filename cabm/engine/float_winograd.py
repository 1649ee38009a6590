"""Float convolutions of 3x3 and 5x5 by Winograd, F(4x4,3x3) and F(2x2,5x5), on tiles of 6x6 pixels.

They take 36 products where direct sums take 144 or 100 (Lavin and Gray, 2016). In float32 the result
differs from that of direct sums by about 1e-6 of its largest values.

A PixelShuffle before the convolution costs nothing: outputs of the convolution before it are ordered so
that the channels of one pixel lie together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba.extending import intrinsic, overload, register_jitable
from torch import Tensor
from torch.nn import functional as F

from cabm.engine import emitter, float_winograd_ir, pointwise
from cabm.engine.arrays import aligned
from cabm.engine.emitter import checksum, typed_call
from cabm.engine.float_winograd_ir import POINTS, POSITIONS, SIDE
from cabm.machine.compiled import Loop, compiles_for_this_cpu, jit
from cabm.machine.cpu import compiler_features

STRIP = 24
"""Tiles transformed together."""

GROUP = 64
"""The most output channels computed together."""

APART = 64
"""Bytes between the numbers of two positions, which would share two sets of the cache otherwise."""


def pack(weight: Tensor, lanes: int) -> np.ndarray:
    """Return transformed weights for (O,I,k,k), k 3 or 5: 36 times those of `pointwise.pack`."""
    matrix = kernel_matrix(weight.shape[-1])
    transformed = matrix @ weight.double() @ matrix.T  # (O,I,6,6)
    positions = transformed.flatten(2).permute(2, 0, 1).float().numpy()
    return aligned(np.concatenate([pointwise.pack(position, lanes) for position in positions]))


def kernel_matrix(size: int) -> Tensor:
    """Return the transform (6,k) of a kernel of k numbers."""
    rows = []
    for point in POINTS:
        others = [float(point - other) for other in POINTS if other != point]
        rows.append(torch.tensor([float(point**power) for power in range(size)]).double() / np.prod(others))
    rows.append(torch.eye(size).double()[-1])
    return torch.stack(rows)


@intrinsic(prefer_literal=True)
def _transform_input(_, lanes, source, row, pixel, registers, transformed, position):
    """Transform the input of one tile; see `cabm.engine.float_winograd_ir.Input`."""
    numbers = {"row", "pixel", "registers", "position"}
    return typed_call(lanes, float_winograd_ir.Input, numbers, float_winograd_ir.emit_input)


@intrinsic(prefer_literal=True)
def _transform_output(_, lanes, outputs, products, position, registers, biases, slope, target, row, pixel):
    """Transform the products of one tile to pixels; see `cabm.engine.float_winograd_ir.Output`."""
    numbers = {"outputs", "position", "registers", "row", "pixel"}
    return typed_call(lanes, float_winograd_ir.Output, numbers, float_winograd_ir.emit_output)


@register_jitable
def _fill(line, x, start, pixel, block, factor, channels, padded, width):
    """Copy a row of ``width`` pixels from ``x`` into a line, each to ``padded`` numbers.

    Args:
        line, x: flat float32.
        start: of the row in ``x``.
        pixel: numbers from one coarse pixel to the next, before PixelShuffle(factor).
        block: of the fine row in a coarse pixel: its first number.
        factor: fine pixels per coarse pixel, side by side in memory.
        channels, padded: numbers of a fine pixel, and in the line.
        width: in fine pixels.
    """
    for column in range(width):
        here = start + column // factor * pixel + block + column % factor * channels
        there = column * padded
        for c in range(channels):
            line[there + c] = x[here + c]


def convolution_loop(lanes: int) -> Loop:
    """Return the function to compile.

    Args:
        lanes: float32 per register.
    """

    emitters = checksum(emitter, float_winograd_ir, pointwise)

    def convolve(x, row, pixel, factor, channels, height, width, first, weights, biases, slope, size, out):
        """Convolve an image.

        Args:
            x: flat float32, the image before PixelShuffle(factor): in a coarse pixel, the channels of a
                fine pixel lie together, fine pixels row by row.
            row, pixel: numbers from one row, and from one pixel, of ``x`` to the next.
            factor: of the shuffle; 1: none.
            channels, height, width: of the image after the shuffle.
            first: row of the image where ``out`` starts.
            weights, biases: flat float32, packed, and padded as ``out``.
            slope: (1,) float32, factor on negative results.
            size: pixels of a tile of results along an axis: 4 for 3x3, 2 for 5x5.
            out: (rows, columns, outputs) float32; rows and columns rounded up to multiples of ``size``,
                output channels to one of ``lanes``.
        """
        _ = emitters
        padded = (channels + lanes - 1) // lanes * lanes
        reach = (SIDE - size) // 2
        columns = out.shape[1] + SIDE - size
        lines = np.zeros((SIDE, columns * padded), np.float32)
        memory = np.empty(POSITIONS * (STRIP * (padded + GROUP) + APART // 2) + GROUP + 16, np.float32)
        for top in range(0, out.shape[0], size):
            for line in range(SIDE):
                y = first + top + line - reach
                if y < 0 or y >= height:
                    lines[line] = 0
                else:
                    block = y % factor * factor * channels
                    inner = lines[line, reach * padded :]
                    _fill(inner, x, y // factor * row, pixel, block, factor, channels, padded, width)
            _convolve_row(
                lanes, lines, columns, padded, weights, biases, slope, size, out[top : top + size], memory
            )

    return convolve


def _convolve_row(lanes, lines, columns, padded, weights, biases, slope, size, out, memory):
    """Convolve one row of tiles from its six lines."""
    raise NotImplementedError("only compiled loops call this")


@overload(_convolve_row, prefer_literal=True)
def _compile_row(lanes, lines, columns, padded, weights, biases, slope, size, out, memory):
    most, width = pointwise.REGISTERS[lanes.literal_value], lanes.literal_value

    def convolve_row(lanes, lines, columns, padded, weights, biases, slope, size, out, memory):
        base = (np.int64(memory.ctypes.data) + 63) // 64 * 64
        source, kernel = np.int64(lines.ctypes.data), np.int64(weights.ctypes.data)
        first_bias, target = np.int64(biases.ctypes.data), np.int64(out.ctypes.data)
        position = 4 * padded * STRIP + APART
        products = base + POSITIONS * position
        zeros = products + POSITIONS * (4 * STRIP * GROUP + APART)
        memory[(zeros - np.int64(memory.ctypes.data)) // 4 :] = 0
        outputs = out.shape[2]
        tiles, pixel = out.shape[1] // size, 4 * outputs
        tile = 0
        for left in range(-(-tiles // STRIP), 0, -1):
            count = -(-(tiles - tile) // left)  # as even as possible
            for i in range(count):
                here = source + 4 * padded * size * (tile + i)
                there = base + 4 * padded * i
                _transform_input(
                    lanes, here, 4 * padded * columns, 4 * padded, padded // width, there, position
                )
            for first in range(0, outputs, most * width):
                registers = min(most, (outputs - first) // width)
                group = 4 * registers * width
                for p in range(POSITIONS):
                    weight = kernel + 4 * padded * (p * outputs + first)
                    for i in range(0, count, pointwise.PIXELS):
                        pointwise.sum_pixels(
                            lanes,
                            registers,
                            min(pointwise.PIXELS, count - i),
                            base + position * p + 4 * padded * i,
                            4 * padded,
                            padded,
                            weight,
                            zeros,
                            products + (group * STRIP + APART) * p + group * i,
                        )
                for i in range(count):
                    _transform_output(
                        lanes,
                        size,
                        products + group * i,
                        group * STRIP + APART,
                        registers,
                        first_bias + 4 * first,
                        np.int64(slope.ctypes.data),
                        target + pixel * size * (tile + i) + 4 * first,
                        pixel * out.shape[1],
                        pixel,
                    )
            tile += count

    return convolve_row


@dataclass(frozen=True)
class Compiled:
    """The compiled loop and the numbers per register that it was compiled for."""

    lanes: int
    run: Loop


def compile_loop() -> Compiled | None:
    """Compile the loop and try it; None if this CPU or numba's settings rule it out.

    Raises:
        ArithmeticError: it computes wrong results.
    """
    features = compiler_features()
    if not compiles_for_this_cpu() or not (features.get("fma") or features.get("neon")):
        return None
    lanes = 16 if features.get("avx512f") else 8
    found = Compiled(lanes, jit(convolution_loop(lanes)))
    if not _tried(found):
        raise ArithmeticError("compiled float convolutions compute wrong results")
    return found


class WinogradConv:
    """A float convolution of 3x3 or 5x5 with stride 1 and "same" padding, and what surrounds it.

    Args:
        loop: from `compile_loop`.
        weight: (O,I,k,k), k 3 or 5.
        bias: (O,) or None.
        shuffle: r of the PixelShuffle that the input has yet to go through; its channels are in the order
            (r^2, I), as `cabm.engine.float_rows.pixels_together` makes them.
        slope: factor on negative results; 1: none.

    Attributes:
        shuffle: r.
        size: pixels of a tile of results along an axis.
    """

    def __init__(
        self, loop: Compiled, weight: Tensor, bias: Tensor | None, *, shuffle: int = 1, slope: float = 1.0
    ) -> None:
        self._run, self.shuffle = loop.run, shuffle
        self._outputs, self._inputs = weight.shape[:2]
        margins = [-count % loop.lanes for count in (self._inputs, self._outputs)]
        weight = F.pad(weight.detach(), (0, 0, 0, 0, 0, margins[0], 0, margins[1]))
        self.size = SIDE + 1 - weight.shape[-1]
        self._weights = pack(weight, loop.lanes)
        bias = torch.zeros(self._outputs) if bias is None else bias.detach().float()
        self._biases = F.pad(bias, (0, margins[1])).numpy()
        self._slope = np.array([slope], dtype=np.float32)

    def __call__(
        self, x: Tensor, first: int = 0, last: int | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        """Convolve (1,I r^2,h,w) float32, channels side by side in memory.

        Args:
            x: the input.
            first, last: rows of the result to compute; default: all.
            out: memory for them, from `memory_for`; default: new memory.

        Returns:
            (1,O,last-first,w r) float32.
        """
        x = x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)
        (channels, height, width), (row, pixel) = x.shape[1:], x.stride()[2:]
        memory = x.as_strided(((height - 1) * row + (width - 1) * pixel + channels,), (1,)).numpy()
        height, width = height * self.shuffle, width * self.shuffle
        rows = (height if last is None else last) - first
        out = self.memory_for(x, rows) if out is None else out
        self._run(
            *(memory, row, pixel, self.shuffle, self._inputs, height, width, first),
            *(self._weights, self._biases, self._slope, self.size),
            out[: self._whole_tiles(rows)].numpy(),
        )
        return out[:rows, :width, : self._outputs].permute(2, 0, 1)[None]

    def memory_for(self, x: Tensor, rows: int) -> Tensor:
        """Return new memory (rows, columns, channels) for rows of the result, rounded up to whole tiles."""
        columns = self._whole_tiles(x.shape[3] * self.shuffle)
        return torch.empty(self._whole_tiles(rows), columns, len(self._biases))

    def _whole_tiles(self, pixels: int) -> int:
        return -(-pixels // self.size) * self.size


def _tried(found: Compiled) -> bool:
    random = np.random.default_rng(0)
    for size in (3, 5):
        weight = torch.from_numpy(random.standard_normal((20, 18, size, size), np.float32))
        x = torch.from_numpy(random.standard_normal((1, 18, 5, 9), np.float32))
        wanted = F.conv2d(x.double(), weight.double(), padding=size // 2)
        error = (WinogradConv(found, weight, None)(x) - wanted).abs().max()
        if not error <= 1e-4 * wanted.abs().max():
            return False
    return True
