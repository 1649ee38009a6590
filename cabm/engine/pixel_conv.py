"""The float convolution of an image's three colours that starts a network.

Its results equal those of oneDNN for images with channels last, bit for bit: products are added to 0 row by
row of the kernel, then by column and channel, without rounding them first, and the bias comes last. This
matters because a quantized network amplifies differences: where two of 331776 codes behind EDSR's head were
rounded to the other side, pixels changed by 0.26 levels on average.

A pixel has too few channels for matrix products pixel by pixel. So memory holds, for every column of
results, what the kernel reads there, row below row: what a result needs lies side by side, and the sums are
those of a 1x1 convolution (`cabm.engine.pointwise`) whose pixels overlap from one row to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from cabm.engine import registers
from cabm.engine.arrays import with_margin
from cabm.engine.reference import convolve, leaky
from cabm.engine.registers import loop_for
from cabm.machine.compiled import Loop, jit, none_if_numba_fails

BAND = 16
"""Rows of results that are computed together, so that what they read stays in the cache."""

FEATURES: registers.Features = {16: ("avx512f",), 8: ("fma",), 4: ("neon", "fma")}


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
        loop = loop_for(compiled, self.lanes)
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
    """Return weights (O,I,k,k) as flat float32: by group of outputs, then by row, column and input.

    Outputs are rounded up to a multiple of ``lanes``.
    """
    from cabm.engine import pointwise

    outputs = len(weight)
    rows = weight.transpose(0, 2, 3, 1).reshape(outputs, -1)
    return pointwise.pack(with_margin(rows, -outputs % lanes), lanes)


@cache
@none_if_numba_fails
def widest() -> int | None:
    """Return the most float32 per register for which a loop compiles on this CPU; None: there is none."""
    return registers.widest(FEATURES)


@cache
@none_if_numba_fails
def compiled(lanes: int) -> Loop | None:
    """Return the compiled loop; None if this CPU or numba's settings rule it out. The first call compiles.

    Args:
        lanes: float32 per register.

    Raises:
        ArithmeticError: it computes wrong results.
    """
    if not registers.compiles(FEATURES, lanes):
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

    for called in (_read_row, _finish):
        register_jitable(called)
    emitters = emitter.checksum(emitter, pointwise)
    most, block = pointwise.REGISTERS[lanes] * lanes, pointwise.PIXELS

    def convolve(x, weights, biases, size, slope, out):
        """Convolve an image (h,w,I) float32 to ``out`` (h,w,O); the others are fields of `PixelConv`."""
        _ = emitters
        height, width, channels = x.shape
        outputs, read = out.shape[2], size * channels
        column, results = (min(BAND, height) + size - 1) * read, out.reshape(-1)
        columns = np.empty(width * column, np.float32)
        line = np.zeros((width + size - 1) * channels, np.float32)
        memory = np.zeros((block + 1) * most, np.float32)  # sums, and zeros that they start from
        source, sums = np.int64(columns.ctypes.data), np.int64(memory.ctypes.data)
        kernel = np.int64(weights.ctypes.data)
        for top in range(0, height, BAND):
            band = min(BAND, height - top)
            for row in range(band + size - 1):
                _read_row(x, top + row - size // 2, size, line, columns[row * read :], column)
            for y in range(top, top + band):
                for first in range(0, outputs, most):
                    wanted, begin = min(most, outputs - first), 0
                    registers = (wanted + lanes - 1) // lanes
                    for left in range(-(-width // block), 0, -1):
                        count = -(-(width - begin) // left)  # as even as possible
                        pointwise.sum_pixels(
                            lanes,
                            registers,
                            count,
                            source + 4 * (begin * column + (y - top) * read),
                            4 * column,
                            size * read,
                            kernel + 4 * first * size * read,
                            sums + 4 * block * most,
                            sums,
                        )
                        there = (y * width + begin) * outputs + first
                        offsets = biases[first : first + wanted]
                        _finish(memory, registers * lanes, count, offsets, slope, results, there, outputs)
                        begin += count

    return convolve


def _read_row(x, y, size, line, columns, column):
    """Write what a row of the kernel reads of row ``y`` of an image, for every column of results.

    Args:
        x: (h,w,I) float32.
        y: the row; beyond the image are zeros.
        size: k, pixels of the kernel's row.
        line: float32 with k // 2 pixels of zeros at both ends, whose other pixels are overwritten.
        columns, column: flat float32, where the row starts in the first column, and numbers from one to the
            next.
    """
    height, width, channels = x.shape
    inside = 0 <= y < height
    for i in range(width):
        for c in range(channels):
            line[(size // 2 + i) * channels + c] = x[y, i, c] if inside else np.float32(0)
    for i in range(width):
        source, target = np.uint64(i * channels), np.uint64(i * column)
        for n in range(np.uint64(size * channels)):
            columns[target + n] = line[source + n]


def _finish(sums, sums_pixel, count, biases, slope, out, there, out_pixel):
    """Write sums plus biases, the negative ones times a slope.

    Args:
        sums, sums_pixel: flat float32, and numbers from one pixel to the next.
        count: pixels.
        biases: float32, one for each number of a pixel.
        slope: float32.
        out, there, out_pixel: flat float32, where the first pixel lies, and numbers from one to the next.
    """
    # unsigned: numba lets negative indices count from the end, which keeps LLVM from using registers
    for pixel in range(count):
        source, target = np.uint64(pixel * sums_pixel), np.uint64(there + pixel * out_pixel)
        for c in range(np.uint64(biases.size)):
            value = sums[source + c] + biases[c]
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
