"""Float convolutions of 3x3 and 5x5 by Winograd, F(4x4,3x3) and F(2x2,5x5), on tiles of 6x6 pixels.

They take 36 products where direct sums take 144 or 100 (Lavin and Gray, 2016). In float32 the result
differs from that of direct sums by about 1e-6 of its largest values.

A PixelShuffle before the convolution costs nothing: outputs of the convolution before it are ordered so
that the channels of one pixel lie together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from cabm.engine import registers
from cabm.engine.arrays import aligned, empty, with_margin
from cabm.engine.reference import convolve
from cabm.engine.registers import loop_for
from cabm.machine.compiled import Loop, jit, none_if_numba_fails

FEATURES: registers.Features = {16: ("avx512f",), 8: ("fma", "neon")}


@dataclass(frozen=True, eq=False)
class WinogradConv:
    """A float convolution of 3x3 or 5x5 with stride 1 and "same" padding, and what surrounds it.

    Attributes:
        weights, biases: flat float32, transformed, and with margins up to whole registers.
        size: pixels of a tile of results along an axis.
        inputs, outputs: numbers of channels, without margins.
        shuffle: r of the PixelShuffle that the input has yet to go through; its channels are in the order
            (r^2, I), as `cabm.engine.float_rows.pixels_together` makes them.
        slope: factor on negative results; 1: none.
        replicate: what lies beyond the border is the outermost pixel instead of 0.
        lanes: float32 per register that the weights are packed for.
    """

    weights: np.ndarray
    biases: np.ndarray
    size: int
    inputs: int
    outputs: int
    shuffle: int
    slope: float
    replicate: bool
    lanes: int

    def __call__(
        self,
        x: np.ndarray,
        first: int = 0,
        last: int | None = None,
        *,
        out: np.ndarray | None = None,
        loop: Loop | None = None,
    ) -> np.ndarray:
        """Convolve (h,w,I r^2) float32, channels side by side in memory.

        Args:
            x: the input.
            first, last: rows of the result to compute; default: all.
            out: memory for them, from `memory_for`; default: new memory.
            loop: compiled for ``lanes``; default: from `compiled`.

        Returns:
            (last-first,w r,O) float32, a part of ``out``.

        Raises:
            RuntimeError: this CPU runs no loop for these weights.
        """
        loop = loop or loop_for(compiled, self.lanes)
        height, width, channels = x.shape
        row, pixel = (stride // x.itemsize for stride in x.strides[:2])
        numbers = (height - 1) * row + (width - 1) * pixel + channels
        memory = np.lib.stride_tricks.as_strided(x, (numbers,), (x.itemsize,))
        height, width = height * self.shuffle, width * self.shuffle
        rows = (height if last is None else last) - first
        out = self.memory_for(x, rows) if out is None else out
        loop(
            *(memory, row, pixel, self.shuffle, self.inputs, height, width, first),
            *(self.weights, self.biases, np.array([self.slope], np.float32), self.size, self.replicate),
            out[: self._whole_tiles(rows)],
        )
        return out[:rows, :width, : self.outputs]

    def memory_for(self, x: np.ndarray, rows: int) -> np.ndarray:
        """Return new memory (rows, columns, channels) for rows of the result, rounded up to whole tiles."""
        columns = self._whole_tiles(x.shape[1] * self.shuffle)
        return empty((self._whole_tiles(rows), columns, len(self.biases)))

    def _whole_tiles(self, pixels: int) -> int:
        return -(-pixels // self.size) * self.size


def pack_winograd(
    weight: np.ndarray,
    bias: np.ndarray | None,
    *,
    shuffle: int = 1,
    slope: float = 1.0,
    replicate: bool = False,
    lanes: int | None = None,
) -> WinogradConv | None:
    """Return a convolution, or None where no compiled loop runs; the first call compiles.

    Args:
        weight: (O,I,k,k) float32, k 3 or 5.
        bias: (O,) float32, or None.
        shuffle, slope, replicate: see `WinogradConv`.
        lanes: float32 per register, 8 or 16; default: the most that this CPU has.
    """
    lanes = widest() if lanes is None else lanes
    if lanes is None or compiled(lanes) is None:
        return None
    return _packed(weight, bias, shuffle, slope, replicate, lanes)


def _packed(
    weight: np.ndarray, bias: np.ndarray | None, shuffle: int, slope: float, replicate: bool, lanes: int
) -> WinogradConv:
    from cabm.engine.float_winograd_ir import SIDE

    outputs, inputs, size, _ = weight.shape
    margin = -outputs % lanes
    bias = np.zeros(outputs, np.float32) if bias is None else bias.astype(np.float32)
    return WinogradConv(
        weights=pack(with_margin(weight, margin, -inputs % lanes), lanes),
        biases=aligned(with_margin(bias, margin)),
        size=SIDE + 1 - size,
        inputs=inputs,
        outputs=outputs,
        shuffle=shuffle,
        slope=slope,
        replicate=replicate,
        lanes=lanes,
    )


def pack(weight: np.ndarray, lanes: int) -> np.ndarray:
    """Return transformed weights for (O,I,k,k), k 3 or 5: 36 times those of `pointwise.pack`."""
    from cabm.engine import pointwise

    matrix = kernel_matrix(weight.shape[-1])
    transformed = matrix @ weight.astype(np.float64) @ matrix.T  # (O,I,6,6)
    positions = transformed.reshape(*weight.shape[:2], -1).transpose(2, 0, 1)
    return aligned(np.concatenate([pointwise.pack(position, lanes) for position in positions]))


def kernel_matrix(size: int) -> np.ndarray:
    """Return the transform (6,k) of a kernel of k numbers, float64."""
    from cabm.engine.float_winograd_ir import POINTS

    rows = []
    for point in POINTS:
        others = [float(point - other) for other in POINTS if other != point]
        rows.append(np.array([float(point**power) for power in range(size)]) / np.prod(others))
    return np.stack([*rows, np.eye(size)[-1]])


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
        lanes: float32 per register, 8 or 16.

    Raises:
        ArithmeticError: it computes wrong results.
    """
    if not registers.compiles(FEATURES, lanes):
        return None
    from cabm.engine.float_winograd_loops import convolution_loop

    loop = jit(convolution_loop(lanes))
    if not _tried(loop, lanes):
        raise ArithmeticError("compiled float convolutions compute wrong results")
    return loop


def _tried(loop: Loop, lanes: int) -> bool:
    random = np.random.default_rng(0)
    for size in (3, 5):
        weight = random.standard_normal((20, 18, size, size), np.float32)
        x = random.standard_normal((5, 9, 18), np.float32)
        wanted = convolve(x, weight)
        error = np.abs(_packed(weight, None, 1, 1.0, False, lanes)(x, loop=loop) - wanted).max()
        if not error <= 1e-4 * np.abs(wanted).max():
            return False
    return True
