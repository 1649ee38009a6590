"""Float convolutions one after another, row by row, for processors with AMX and bfloat16.

PixelShuffle and activations cost no pass over memory. Sums are in float32, and rounded to bfloat16 only
where the next convolution reads them. `cabm.engine.row_order` explains the order of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine.elementwise import dense, flat
from cabm.machine.compiled import Loop, compiles_for_this_cpu, jit, none_if_numba_fails
from cabm.machine.cpu import compiler_features, multiplies_bfloat16
from cabm.models.tail import before_pixel_shuffle, pixels_together

CHANNELS = 16
"""Output channels of a tile register."""

DEPTH = 32
"""Input numbers of a tile register's row."""


@dataclass(frozen=True)
class Layer:
    """A convolution with stride 1 and "same" padding, and what follows it.

    Attributes:
        weight: (O,I,k,k), k odd.
        bias: (O,).
        shuffle: r of the PixelShuffle after it; 1: none.
        slope: factor on negative results; 1: none.
        replicate: what lies beyond the border is the outermost pixel instead of 0.
        parts: bfloat16 numbers that stand for an input or a weight: 1, or, in the first convolution only, 2
            for 16 bits.
        input_bytes, weight_bytes: numbers of 8 bits that stand for an input, and for a weight, where bytes
            are multiplied; see `cabm.engine.byte_rows`.
    """

    weight: Tensor
    bias: Tensor
    shuffle: int = 1
    slope: float = 1.0
    replicate: bool = False
    parts: Literal[1, 2] = 1
    input_bytes: Literal[1, 2] = 1
    weight_bytes: Literal[1, 2] = 1


class Rows:
    """Convolutions one after another, in bfloat16, with results in float32.

    Args:
        loop: from `compiled`.
        layers: first to last. All but the last make a multiple of 16 channels after their PixelShuffle.
    """

    def __init__(self, loop: Loop, layers: Sequence[Layer]) -> None:
        self._loop = loop
        self._scale = math.prod(layer.shuffle for layer in layers)
        self._channels = len(layers[-1].weight) // layers[-1].shuffle ** 2
        self._kept: list[Tensor] = []
        self._table = np.array([self._row(layer, layer is layers[-1]) for layer in layers], np.int64)

    def _row(self, layer: Layer, last: bool) -> list[int]:
        """Return a row of the loop's table; see `cabm.engine.row_order.KERNEL` and those after it."""
        weight, bias = (
            pixels_together(each.detach(), layer.shuffle) for each in (layer.weight, layer.bias)
        )
        margin = -len(weight) % CHANNELS
        packed = [
            pack(in_parts(F.pad(weight, (0, 0, 0, 0, 0, 0, 0, margin)), layer.parts)),
            F.pad(bias, (0, margin)).float().contiguous(),
        ]
        slope = torch.tensor([layer.slope], dtype=torch.float32)
        self._kept += [*packed, slope]
        outputs, inputs, size, _ = weight.shape
        shape = [size, inputs * layer.parts, outputs + margin, layer.shuffle, int(layer.replicate)]
        return [*shape, slope.data_ptr(), 1, *[tensor.data_ptr() for tensor in packed], layer.parts]

    def __call__(self, x: Tensor, *, addend: Tensor | None = None, base: Tensor | None = None) -> Tensor:
        """Convolve (1,I,h,w) float32.

        Args:
            x: the input.
            addend: added to the first convolution's result; of its shape.
            base: added to the result; of its shape.

        Returns:
            (1,C,h*R,w*R) float32, channels last; R is the product of all factors.
        """
        height, width = x.shape[2:]
        out = torch.empty(height * self._scale, width * self._scale, self._channels)
        nothing = np.empty(0, np.float32)
        self._loop(
            *(self._table, height, width, flat(dense(x))),
            nothing if addend is None else flat(dense(addend)),
            nothing.reshape(0, 0, 0) if base is None else dense(base)[0].permute(1, 2, 0).numpy(),
            out.numpy(),
        )
        return out.permute(2, 0, 1)[None]


def in_parts(weight: Tensor, parts: int) -> Tensor:
    """Return weights (O,parts I,parts k,k) for (O,I,k,k), which read the parts of every pixel.

    The upper part of a weight multiplies both parts of its input. The lower part, in rows of its own,
    multiplies the upper one; lower parts with each other would be too small to matter.
    """
    if parts == 1:
        return weight
    upper = weight.bfloat16().float()
    lower = weight - upper
    return torch.cat([torch.cat([upper, upper], 1), torch.cat([lower, torch.zeros_like(lower)], 1)], dim=2)


def pack(weight: Tensor) -> Tensor:
    """Return bfloat16 weights (O / 16, r, ceil(k I / 32), 16, 16, 2) for (O,I,r,k)."""
    outputs, inputs, taps, size = weight.shape
    rows = weight.permute(0, 2, 3, 1).reshape(outputs, taps, size * inputs)
    rows = F.pad(rows, (0, -size * inputs % DEPTH))
    tiles = rows.view(outputs // CHANNELS, CHANNELS, taps, -1, DEPTH // 2, 2)
    return tiles.permute(0, 2, 3, 4, 1, 5).to(torch.bfloat16).contiguous()


def rows(dtype: torch.dtype, layers: Sequence[Layer]) -> Rows | None:
    """Return convolutions that compute in ``dtype``; None where this CPU or their shapes rule that out."""
    layers = on_coarse_grid(layers)
    whole = all(len(layer.weight) // layer.shuffle**2 % CHANNELS == 0 for layer in layers[:-1])
    loop = compiled() if dtype == torch.bfloat16 and whole else None
    return None if loop is None else Rows(loop, layers)


def on_coarse_grid(layers: Sequence[Layer]) -> list[Layer]:
    """Move a last convolution of few channels from behind a PixelShuffle to before it.

    This computes the same numbers. It makes r^2 times as many channels of r^2 times as few pixels, which
    fill a tile register.
    """
    *others, last = layers
    factor = others[-1].shuffle if others else 1
    if factor == 1 or last.shuffle > 1 or last.replicate or len(last.weight) >= CHANNELS:
        return list(layers)
    weight = before_pixel_shuffle(last.weight.detach(), factor)
    bias = last.bias.detach().repeat_interleave(factor**2)
    moved = replace(last, weight=weight, bias=bias, shuffle=factor)
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
    if not has_units or not multiplies_bfloat16(torch.device("cpu")):
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
    random = np.random.default_rng(0)  # PyTorch's generators need modules that a start does without
    x, *weights = (
        torch.from_numpy(random.integers(-3, 4, size)).float()
        for size in ((1, 18, 5, 9), (64, 18, 3, 3), (12, 16, 5, 5))
    )
    first = Layer(weights[0] / 64, torch.full((64,), 0.5), shuffle=2, slope=0.5)
    hidden = F.pixel_shuffle(F.conv2d(x, first.weight, first.bias, padding=1), 2)
    hidden = F.leaky_relu(hidden, 0.5).bfloat16().float()
    last = Layer(weights[1], torch.zeros(12), shuffle=2)
    wanted = F.pixel_shuffle(F.conv2d(hidden, last.weight, padding=2), 2)
    return bool((Rows(loop, [first, last])(x) - wanted).abs().max() <= 1e-3)
