"""A model's quantizers as byte grids, and its quantized convolutions with packed weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cabm.engine.elementwise import encode
from cabm.engine.grid import Grid, Storage
from cabm.engine.onednn import IntegerConv, Scaling
from cabm.quant.layers import PamsActivation, QuantConv2d
from cabm.quant.skip import QuantizedSkip

Row = tuple[int, ...] | None
"""Bits of the L adaptive layers; None for a PAMS model."""


def bits_of(activation: nn.Module, row: Row) -> int:
    """Return the width of a quantizer at the bits of ``row``."""
    if isinstance(activation, PamsActivation):
        return activation.bits
    assert row is not None
    return row[activation.position]


def grid_at(activation: nn.Module, bits: int, storage: Storage) -> Grid:
    """Return the byte grid of a quantizer at a width, its own or one of its search space."""
    index = 0 if isinstance(activation, PamsActivation) else activation.widths.tolist().index(bits)
    return Grid(float(activation.alpha.detach()[index]), bits, storage, activation.unsigned)


def grid_of(activation: nn.Module, row: Row, storage: Storage) -> Grid:
    """Return the byte grid of a quantizer at the bits of ``row``."""
    return grid_at(activation, bits_of(activation, row), storage)


def input_storage(activation: nn.Module) -> Storage:
    """Return the storage of codes that a convolution reads: unsigned ones need no shift."""
    return Storage.POSITIVE if activation.unsigned else Storage.SHIFTED


def skip_grid(block: nn.Module, bits: int) -> Grid:
    """Return the grid of a residual block's skip connection when its first convolution reads ``bits``."""
    if isinstance(block.skip, QuantizedSkip):
        return grid_at(block.skip.act, block.skip.act.bits, Storage.SHIFTED)
    return grid_at(block.act1, bits, Storage.SHIFTED)


def weight_bits_at(conv: QuantConv2d, bits: int) -> int:
    """Return the width of a convolution's weights when its input has ``bits``."""
    return bits if conv.weight_bits == "same" else int(conv.weight_bits)


@dataclass(frozen=True, eq=False)
class BoundConv:
    """A packed convolution bound to the grid of its input.

    Attributes:
        conv: the packed weights: an `IntegerConv`, or whatever `PackedConv` was given to pack with.
        grid: of the input.
        scaling: from integer sums to values.
    """

    conv: Any
    grid: Grid
    scaling: Scaling

    @cached_property
    def affine(self) -> np.ndarray:
        """Factors and biases (2,O) for the sums of compiled weights, whose outputs may be padded."""
        numbers = np.zeros((2, len(self.conv.starts)), dtype=np.float32)
        for row, values in zip(numbers, self.scaling.arrays, strict=True):
            row[: self.conv.channels] = values
        return numbers

    def to_codes(self, x: Tensor, out: Grid) -> Tensor:
        """Convolve codes (N,I,H,W) and quantize to ``out``; two passes if ``out`` has no divisor."""
        if out.divisor is None:
            return encode(self.to_float(x), out)
        return self.conv.to_codes(x, self.grid, self.scaling, out)

    def to_float(self, x: Tensor) -> Tensor:
        """Convolve codes (N,I,H,W) to float32 values."""
        return self.conv.to_float(x, self.grid, self.scaling)


class PackedConv:
    """A quantized convolution whose weights are packed once, at first use.

    Packed weights do not depend on the activations' bits, so all bit rows share them. With
    ``weight_bits: same`` there is one pack per width.

    Args:
        conv: the convolution.
        outputs: the output channels to compute; all of them for grouped convolutions.
        pack: packs weights; called like `IntegerConv`.
        after: factors and biases (O,) that follow the convolution.
    """

    def __init__(
        self,
        conv: QuantConv2d,
        outputs: slice = slice(None),
        *,
        pack: Callable[..., Any] = IntegerConv,
        after: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._conv = conv
        self._outputs = outputs
        self._packer = pack
        self._after = after
        self._packs: dict[tuple[int, bool], tuple[Any, Tensor]] = {}
        self._bound: dict[Grid, BoundConv] = {}  # few: hundreds of rows combine a few widths per layer

    def at(self, grid: Grid) -> BoundConv:
        """Return the convolution for inputs on ``grid``."""
        if grid not in self._bound:
            bits = weight_bits_at(self._conv, grid.bits)
            packed, scale = self._pack(bits, shifted=grid.zero != 0)
            bias = None if self._conv.bias is None else self._conv.bias[self._outputs]
            factors = scale * float(grid.scale)
            if self._after is not None:
                gain, offset = self._after
                factors, bias = factors * gain, offset if bias is None else bias * gain + offset
            self._bound[grid] = BoundConv(packed, grid, Scaling(factors, bias))
        return self._bound[grid]

    def _pack(self, bits: int, *, shifted: bool) -> tuple[Any, Tensor]:
        key = bits, shifted
        if key not in self._packs:
            conv = self._conv
            with torch.no_grad():
                codes, scale = conv.codes(bits)
            codes = codes[self._outputs]
            packed = self._packer(
                codes if self._packer is IntegerConv else codes.numpy(),
                stride=conv.stride,
                padding=conv.padding,
                dilation=conv.dilation,
                groups=conv.groups,
                shifted=shifted,
            )
            scale = scale.flatten()
            self._packs[key] = packed, scale[self._outputs] if len(scale) > 1 else scale
        return self._packs[key]
