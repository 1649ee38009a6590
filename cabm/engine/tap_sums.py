"""Float convolutions whose kernel has many taps or few outputs, such as the colours of an image.

A product of matrices gives, for every pixel, the products with all taps of the kernel; a result is the sum
of its neighbours' products. So taps fill the lanes of a register, where a direct sum has three colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from cabm.engine import pixel_conv, registers
from cabm.engine.arrays import aligned, empty, with_margin
from cabm.engine.reference import convolve
from cabm.engine.registers import loop_for
from cabm.machine.compiled import Loop, jit, none_if_numba_fails


@dataclass(frozen=True, eq=False)
class TapConv:
    """A convolution with stride 1 and "same" padding.

    Attributes:
        weights: flat float32, from `pack`.
        biases: (O,) float32.
        size: k, odd.
        inputs: I.
        shuffle: r of the PixelShuffle that the input has yet to go through; its channels are in the order
            (r^2, I), as `cabm.engine.float_rows.pixels_together` makes them.
        lanes: float32 per register that the weights are packed for.
    """

    weights: np.ndarray
    biases: np.ndarray
    size: int
    inputs: int
    shuffle: int
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
            x: the input; beyond its rows and columns are zeros.
            first, last: rows of ``x`` whose results are wanted; default: all.
            out: contiguous memory for them; default: new memory.
            loop: compiled for ``lanes``; default: from `compiled`.

        Returns:
            ``out``, ((last-first) r,w r,O) float32.

        Raises:
            RuntimeError: this CPU runs no loop for these weights.
        """
        loop = loop or loop_for(compiled, self.lanes)
        (height, width, _), factor = x.shape, self.shuffle
        rows = (height if last is None else last) - first
        out = empty((rows * factor, width * factor, len(self.biases))) if out is None else out
        loop(
            *(x.ctypes.data, *x.strides[:2], height, width, self.inputs, factor),
            *(self.weights, self.biases, self.size, first * factor, out),
        )
        return out


def pack_taps(
    weight: np.ndarray, bias: np.ndarray, *, shuffle: int = 1, lanes: int | None = None
) -> TapConv | None:
    """Return a convolution, or None where no compiled loop runs; the first call compiles.

    Args:
        weight: (O,I,k,k) float32, k odd.
        bias: (O,) float32.
        shuffle: see `TapConv`.
        lanes: float32 per register, 4, 8 or 16; default: the most that this CPU has.
    """
    lanes = pixel_conv.widest() if lanes is None else lanes
    if lanes is None or compiled(lanes) is None:
        return None
    return _packed(weight, bias, shuffle, lanes)


def _packed(weight: np.ndarray, bias: np.ndarray, shuffle: int, lanes: int) -> TapConv:
    size, inputs = weight.shape[-1], weight.shape[1]
    return TapConv(pack(weight, lanes), bias.astype(np.float32), size, inputs, shuffle, lanes)


def pack(weight: np.ndarray, lanes: int) -> np.ndarray:
    """Return weights (O,I,k,k) as those of a 1x1 convolution, of `pointwise.pack`, to O k^2 outputs.

    Their order is that of the results which a pixel is part of: by column, by row, and by channel.
    """
    from cabm.engine import pointwise

    taps = weight[:, :, ::-1, ::-1].transpose(3, 2, 0, 1).reshape(-1, weight.shape[1])
    return aligned(pointwise.pack(with_margin(taps, -len(taps) % lanes), lanes))


@cache
@none_if_numba_fails
def compiled(lanes: int) -> Loop | None:
    """Return the compiled loop; None if this CPU or numba's settings rule it out. The first call compiles.

    Args:
        lanes: float32 per register.

    Raises:
        ArithmeticError: it computes wrong results.
    """
    if not registers.compiles(pixel_conv.FEATURES, lanes):
        return None
    from cabm.engine.tap_sums_loops import taps_loop

    loop = jit(taps_loop(lanes))
    if not _tried(loop, lanes):
        raise ArithmeticError("compiled sums of taps compute wrong results")
    return loop


def _tried(loop: Loop, lanes: int) -> bool:
    """Return whether a loop computes small whole numbers, which have no rounding, exactly."""
    random = np.random.default_rng(0)
    x, weight, bias = (
        random.integers(-8, 9, shape).astype(np.float32) for shape in ((4, 9, 10), (3, 10, 5, 5), (3,))
    )
    found = _packed(weight, bias, 1, lanes)(x, loop=loop)
    return np.array_equal(found, convolve(x, weight) + bias)
