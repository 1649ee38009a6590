"""Float convolutions one after another, row by row, for processors with AMX and bfloat16.

PixelShuffle and activations cost no pass over memory. Sums are in float32, and rounded to bfloat16 only
where the next convolution reads them. `cabm.engine.row_order` explains the order of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from cabm.engine.arrays import aligned, empty, with_margin
from cabm.engine.bfloat16 import from_bfloat16, to_bfloat16
from cabm.engine.reference import convolve, leaky, pixel_shuffle
from cabm.machine.compiled import Loop, compiles_for_this_cpu, jit, none_if_numba_fails
from cabm.machine.cpu import compiler_features, cpu_multiplies_bfloat16

if TYPE_CHECKING:
    from torch import Tensor

CHANNELS = 16
"""Output channels of a tile register."""

DEPTH = 32
"""Input numbers of a tile register's row."""


@dataclass(frozen=True)
class Layer:
    """A convolution with stride 1 and "same" padding, and what follows it.

    Attributes:
        weight: (O,I,k,k) float32, k odd.
        bias: (O,) float32.
        shuffle: r of the PixelShuffle after it; 1: none.
        slope: factor on negative results; 1: none.
        replicate: what lies beyond the border is the outermost pixel instead of 0.
        parts: bfloat16 numbers that stand for an input or a weight: 1, or, in the first convolution only, 2
            for 16 bits.
        input_bytes, weight_bytes: numbers of 8 bits that stand for an input, and for a weight, where bytes
            are multiplied; see `cabm.engine.byte_rows`.
    """

    weight: np.ndarray
    bias: np.ndarray
    shuffle: int = 1
    slope: float = 1.0
    replicate: bool = False
    parts: Literal[1, 2] = 1
    input_bytes: Literal[1, 2] = 1
    weight_bytes: Literal[1, 2] = 1


@dataclass(frozen=True)
class PackedRows:
    """Convolutions one after another, whose weights lie in memory as a loop reads them.

    Attributes:
        lanes: of the registers that bytes are packed for (`cabm.engine.byte_rows`); 0: bfloat16, for AMX.
        scale: R, the product of the factors of all PixelShuffles.
        channels: of the result.
        table: (S,F) int64, a row for each convolution, see `cabm.engine.row_order.KERNEL` and those after
            it; 0 where an address belongs.
        arrays: what these addresses point to, equally many for each convolution, first to last: the slope
            (1,) float32, and then the columns from `cabm.engine.row_order.OWN` on.
    """

    lanes: int
    scale: int
    channels: int
    table: np.ndarray
    arrays: Sequence[np.ndarray]


class Rows:
    """Convolutions one after another, with results in float32.

    Args:
        loop: from `compiled`, or from that of `cabm.engine.byte_rows` for as many lanes.
        packed: the convolutions.

    Attributes:
        packed: the same; each array starts with a cache line.
    """

    def __init__(self, loop: Loop, packed: PackedRows) -> None:
        from cabm.engine.row_order import OWN, SLOPE

        self.packed, self._loop = replace(packed, arrays=[aligned(each) for each in packed.arrays]), loop
        addresses = np.array([array.ctypes.data for array in self.packed.arrays], np.int64)
        addresses = addresses.reshape(len(packed.table), -1)
        self._table = packed.table.copy()
        self._table[:, SLOPE] = addresses[:, 0]
        self._table[:, OWN : OWN + addresses.shape[1] - 1] = addresses[:, 1:]

    def __call__(
        self, x: np.ndarray, *, addend: np.ndarray | None = None, base: np.ndarray | None = None
    ) -> np.ndarray:
        """Convolve (h,w,I) float32.

        Args:
            x: the input.
            addend: added to the first convolution's result; of its shape, float32.
            base: added to the result; of its shape, float32.

        Returns:
            (h*R,w*R,C) float32; R is the product of all factors.
        """
        height, width = x.shape[:2]
        scale = self.packed.scale
        out = empty((height * scale, width * scale, self.packed.channels))
        nothing = np.empty((0, 0, 0), np.float32)
        images = (nothing if each is None else np.ascontiguousarray(each) for each in (x, addend, base))
        x, addend, base = images
        self._loop(self._table, height, width, x.reshape(-1), addend.reshape(-1), base, out)
        return out


def pack_rows(layers: Sequence[Layer]) -> PackedRows:
    """Pack convolutions for bfloat16.

    Args:
        layers: first to last. All but the last make a multiple of 16 channels after their PixelShuffle.
    """
    table, arrays = [], []
    for layer in layers:
        weight, bias = (pixels_together(each, layer.shuffle) for each in (layer.weight, layer.bias))
        margin = -len(weight) % CHANNELS
        outputs, inputs, size, _ = weight.shape
        shape = [size, inputs * layer.parts, outputs + margin, layer.shuffle, int(layer.replicate)]
        table.append([*shape, 0, 1, 0, 0, layer.parts])
        packed = pack(in_parts(with_margin(weight, margin), layer.parts))
        arrays += [np.array([layer.slope], np.float32), packed, with_margin(bias, margin)]
    return PackedRows(0, *result_shape(layers), np.array(table, np.int64), arrays)


def result_shape(layers: Sequence[Layer]) -> tuple[int, int]:
    """Return the scale and the channels of what convolutions make."""
    channels = len(layers[-1].weight) // layers[-1].shuffle ** 2
    return math.prod(layer.shuffle for layer in layers), channels


Channels = TypeVar("Channels", np.ndarray, "Tensor")


def pixels_together(channels: Channels, factor: int) -> Channels:
    """Order the channels (C r^2,...) before a PixelShuffle as (r^2, C): those of a pixel lie together."""
    cells = channels.reshape(-1, factor**2, *channels.shape[1:])
    return cells.swapaxes(0, 1).reshape(channels.shape)


def in_parts(weight: np.ndarray, parts: int) -> np.ndarray:
    """Return weights (O,parts I,parts k,k) for (O,I,k,k), which read the parts of every pixel.

    The upper part of a weight multiplies both parts of its input. The lower part, in rows of its own,
    multiplies the upper one; lower parts with each other would be too small to matter.
    """
    if parts == 1:
        return weight
    upper = from_bfloat16(to_bfloat16(weight))
    lower = weight - upper
    rows = [[upper, upper], [lower, np.zeros_like(lower)]]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=2)


def pack(weight: np.ndarray) -> np.ndarray:
    """Return bfloat16 weights (O / 16, r, ceil(k I / 32), 16, 16, 2) for (O,I,r,k)."""
    outputs, inputs, taps, size = weight.shape
    rows = weight.transpose(0, 2, 3, 1).reshape(outputs, taps, size * inputs)
    rows = with_margin(rows, 0, 0, -size * inputs % DEPTH)
    tiles = rows.reshape(outputs // CHANNELS, CHANNELS, taps, -1, DEPTH // 2, 2)
    return to_bfloat16(tiles.transpose(0, 2, 3, 4, 1, 5))


def rows(layers: Sequence[Layer], *, bfloat16: bool) -> Rows | None:
    """Return convolutions in bfloat16; None where that is not wanted, or this CPU or shapes rule it out."""
    layers = on_coarse_grid(layers)
    whole = all(len(layer.weight) // layer.shuffle**2 % CHANNELS == 0 for layer in layers[:-1])
    loop = compiled() if bfloat16 and whole else None
    return None if loop is None else Rows(loop, pack_rows(layers))


def on_coarse_grid(layers: Sequence[Layer]) -> list[Layer]:
    """Move a last convolution of few channels from behind a PixelShuffle to before it.

    This computes the same numbers. It makes r^2 times as many channels of r^2 times as few pixels, which
    fill a tile register.
    """
    *others, last = layers
    factor = others[-1].shuffle if others else 1
    if factor == 1 or last.shuffle > 1 or last.replicate or len(last.weight) >= CHANNELS:
        return list(layers)
    import torch

    from cabm.models.tail import before_pixel_shuffle

    weight = before_pixel_shuffle(torch.from_numpy(last.weight), factor).numpy()
    moved = replace(last, weight=weight, bias=np.repeat(last.bias, factor**2), shuffle=factor)
    return [*others[:-1], replace(others[-1], shuffle=1), moved]


@cache
@none_if_numba_fails
def compiled() -> Loop | None:
    """Return the compiled loop, or None where the CPU has no AMX with bfloat16; the first call compiles.

    Raises:
        ArithmeticError: it computes wrong results.
    """
    features = compiler_features()
    units = ("amx-bf16", "avx512bf16", "avx512bw")
    has_units = all(features.get(each) for each in units) and compiles_for_this_cpu()
    if not has_units or not cpu_multiplies_bfloat16():
        return None
    from cabm.engine.amx import permitted
    from cabm.engine.float_rows_loops import rows_loop

    if not permitted():
        return None
    loop = jit(rows_loop())
    if not _tried(loop):
        raise ArithmeticError("compiled float convolutions compute wrong results")
    return loop


def _tried(loop: Loop) -> bool:
    """Run two convolutions on small whole numbers, whose sums are exact."""
    random = np.random.default_rng(0)
    x, *weights = (
        random.integers(-3, 4, size).astype(np.float32)
        for size in ((5, 9, 18), (64, 18, 3, 3), (12, 16, 5, 5))
    )
    first = Layer(weights[0] / 64, np.full(64, 0.5, np.float32), shuffle=2, slope=0.5)
    hidden = leaky(pixel_shuffle(convolve(x, first.weight) + 0.5, 2), 0.5)
    hidden = from_bfloat16(to_bfloat16(hidden))
    last = Layer(weights[1], np.zeros(12, np.float32), shuffle=2)
    wanted = pixel_shuffle(convolve(hidden, last.weight), 2)
    return bool(np.abs(Rows(loop, pack_rows([first, last]))(x) - wanted).max() <= 1e-3)
