"""The float convolution of an image's three colours that starts a network.

A pixel has too few channels for matrix products pixel by pixel. So a line in memory holds, column by
column, the pixels of all rows that the kernel reads: what a result needs lies side by side there, and the
sums are those of a 1x1 convolution (`cabm.engine.pointwise`) whose pixels overlap.

Moving the line's start by one pixel moves the kernel down by one row: every column loses its uppermost
pixel to the column before, which keeps its newest one there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from cabm.engine.arrays import with_margin
from cabm.engine.reference import convolve, leaky
from cabm.machine.compiled import Loop, compiles_for_this_cpu, jit, none_if_numba_fails
from cabm.machine.cpu import compiler_features

FEATURES = {16: ("avx512f",), 8: ("fma",), 4: ("neon", "fma")}
"""By float32 per register, widest first, the instruction sets one of which it needs, by LLVM's names."""


@dataclass(frozen=True)
class PixelConv:
    """A convolution with stride 1 and "same" padding, and the activation after it.

    Attributes:
        weights: flat float32, from `pack`.
        biases: (O,) float32.
        size: k, odd.
        slope: factor on negative results; 1: none.
        lanes: float32 per register that the weights are packed for.
    """

    weights: np.ndarray
    biases: np.ndarray
    size: int
    slope: float
    lanes: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Convolve (h,w,I) float32, I as packed.

        Returns:
            (h,w,O) float32, contiguous.

        Raises:
            RuntimeError: this CPU runs no loop for these weights.
        """
        loop = compiled(self.lanes)
        if loop is None:
            raise RuntimeError(f"no compiled convolution with {self.lanes} numbers per register runs here")
        out = np.empty((*x.shape[:2], len(self.biases)), np.float32)
        slope = np.float32(self.slope)
        loop(np.ascontiguousarray(x, np.float32), self.weights, self.biases, self.size, slope, out)
        return out


def pack_pixel_conv(
    weight: np.ndarray, bias: np.ndarray | None, slope: float = 1.0, *, lanes: int | None = None
) -> PixelConv | None:
    """Return a convolution, or None where no compiled loop runs; the first call compiles.

    Args:
        weight: (O,I,k,k) float32, k odd.
        bias: (O,) float32, or None.
        slope: factor on negative results; 1: none.
        lanes: float32 per register, 4, 8 or 16; default: the most that this CPU has.
    """
    lanes = widest() if lanes is None else lanes
    if lanes is None or compiled(lanes) is None:
        return None
    biases = np.zeros(len(weight), np.float32) if bias is None else np.array(bias, np.float32)
    return PixelConv(pack(weight, lanes), biases, weight.shape[-1], slope, lanes)


def pack(weight: np.ndarray, lanes: int) -> np.ndarray:
    """Return weights (O,I,k,k) as flat float32: by group of outputs, then by column, row and input.

    Outputs are rounded up to a multiple of ``lanes``.
    """
    from cabm.engine import pointwise

    outputs = len(weight)
    rows = weight.transpose(0, 3, 2, 1).reshape(outputs, -1)
    return pointwise.pack(with_margin(rows, -outputs % lanes), lanes)


@cache
@none_if_numba_fails
def widest() -> int | None:
    """Return the most float32 per register for which a loop compiles on this CPU; None: there is none."""
    features = compiler_features()
    return next((lanes for lanes, any_of in FEATURES.items() if any(map(features.get, any_of))), None)


@cache
@none_if_numba_fails
def compiled(lanes: int) -> Loop | None:
    """Return the compiled loop; None if this CPU or numba's settings rule it out. The first call compiles.

    Args:
        lanes: float32 per register.

    Raises:
        ArithmeticError: it computes wrong results.
    """
    if not compiles_for_this_cpu() or not any(map(compiler_features().get, FEATURES[lanes])):
        return None
    loop = jit(convolution_loop(lanes))
    if not _tried(loop, lanes):
        raise ArithmeticError("compiled convolutions of colours compute wrong results")
    return loop


def convolution_loop(lanes: int) -> Loop:
    """Return the function to compile.

    Args:
        lanes: float32 per register.
    """
    from numba.extending import register_jitable

    from cabm.engine import emitter, pointwise

    for called in (_read_row, _activate):
        register_jitable(called)
    emitters = emitter.checksum(emitter, pointwise)
    most, block = pointwise.REGISTERS[lanes] * lanes, pointwise.PIXELS

    def convolve(x, weights, biases, size, slope, out):
        """Convolve an image (h,w,I) float32 to ``out`` (h,w,O); the others are fields of `PixelConv`."""
        _ = emitters
        height, width, channels = x.shape
        outputs, column = out.shape[2], size * channels
        rows, results = height + size // 2, out.reshape(-1)
        line = np.zeros((width + size) * column + (rows + 1) * channels, np.float32)
        memory = np.zeros(block * most + outputs + lanes, np.float32)  # sums, and biases with a margin
        for c in range(outputs):
            memory[block * most + c] = biases[c]
        source, sums = np.int64(line.ctypes.data), np.int64(memory.ctypes.data)
        kernel, target = np.int64(weights.ctypes.data), np.int64(out.ctypes.data)
        straight = outputs == most and slope == 1
        for newest in range(rows):
            start = (newest + 1) * channels
            _read_row(x, newest, column, line[start + size // 2 * column - channels :])
            y = newest - size // 2
            for first in range(0, outputs if y >= 0 else 0, most):
                wanted, begin = min(most, outputs - first), 0
                registers = (wanted + lanes - 1) // lanes
                for left in range(-(-width // block), 0, -1):
                    count = -(-(width - begin) // left)  # as even as possible
                    there = (y * width + begin) * outputs + first
                    pointwise.sum_pixels(
                        lanes,
                        registers,
                        count,
                        source + 4 * (start + begin * column),
                        4 * column,
                        size * column,
                        kernel + 4 * first * size * column,
                        sums + 4 * (block * most + first),
                        target + 4 * there if straight else sums,
                    )
                    if not straight:
                        _activate(memory, registers * lanes, count, wanted, slope, results, there, outputs)
                    begin += count

    return convolve


def _read_row(x, y, column, line):
    """Write row ``y`` of an image, or zeros below it, as the newest pixels of a line's columns.

    Args:
        x: (h,w,I) float32.
        y: the row.
        column: numbers of a column of the line.
        line: float32 from the newest pixel of the column left of the image on. That gets zeros, in place of
            what the first column loses.
    """
    height, width, channels = x.shape
    for c in range(channels):
        line[c] = 0
    if y < height:
        for i in range(width):
            for c in range(channels):
                line[(i + 1) * column + c] = x[y, i, c]
    else:
        for i in range(width):
            for c in range(channels):
                line[(i + 1) * column + c] = 0


def _activate(sums, sums_pixel, count, wanted, slope, out, there, out_pixel):
    """Write sums, the negative ones times a slope.

    Args:
        sums, sums_pixel: flat float32, and numbers from one pixel to the next.
        count, wanted: pixels, and numbers of each.
        slope: float32.
        out, there, out_pixel: flat float32, where the first pixel lies, and numbers from one to the next.
    """
    # unsigned: numba lets negative indices count from the end, which keeps LLVM from using registers
    for pixel in range(count):
        source, target = np.uint64(pixel * sums_pixel), np.uint64(there + pixel * out_pixel)
        for c in range(np.uint64(wanted)):
            value = sums[source + c]
            out[target + c] = value if value >= 0 else value * slope


def _tried(loop: Loop, lanes: int) -> bool:
    """Return whether a loop computes small whole numbers, which have no rounding, exactly."""
    random = np.random.default_rng(0)
    height, width, outputs, size = 4, 9, 20, 3
    x = random.integers(-8, 9, (height, width, 3)).astype(np.float32)
    weight = random.integers(-8, 9, (outputs, 3, size, size)).astype(np.float32)
    biases = random.integers(-8, 9, outputs).astype(np.float32)
    out = np.empty((height, width, outputs), np.float32)
    loop(x, pack(weight, lanes), biases, size, np.float32(0.25), out)
    return np.array_equal(out, leaky(convolve(x, weight) + biases, 0.25))
