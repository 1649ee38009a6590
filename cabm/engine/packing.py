"""From a model's quantizers and convolutions to byte grids and packed convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cabm.engine.elementwise import encode
from cabm.engine.grid import Grid, Storage
from cabm.engine.onednn import IntegerConv, Scaling
from cabm.quant.functional import weight_codes
from cabm.quant.layers import PamsActivation, QuantConv2d

Row = tuple[int, ...] | None  # bits of the L adaptive positions; None in a PAMS model


class Program(Protocol):
    """A backbone whose quantized convolutions run on bytes; one file per backbone."""

    def plan(self, row: Row) -> Any:
        """Return what `run` needs for tiles of these bits: grids, and references to packed weights."""
        ...

    def run(self, x: Tensor, plan: Any) -> Tensor:
        """Upscale one tile (1,3,h,w) float32 in 0..255 to (1,3,h*scale,w*scale) float32.

        Called from several threads at once.
        """
        ...


def bits_of(activation: nn.Module, row: Row) -> int:
    """Return the width of a quantizer at the bits of ``row``."""
    if isinstance(activation, PamsActivation):
        return activation.bits
    assert row is not None
    return row[activation.position]


def grid_at(activation: nn.Module, bits: int, storage: Storage) -> Grid:
    """Return the byte grid of a quantizer at a width that it knows."""
    index = 0 if isinstance(activation, PamsActivation) else activation.widths.tolist().index(bits)
    return Grid(float(activation.alpha.detach()[index]), bits, storage)


def grid_of(activation: nn.Module, row: Row, storage: Storage) -> Grid:
    """Return the byte grid of a quantizer at its bits of ``row``."""
    return grid_at(activation, bits_of(activation, row), storage)


class Step(NamedTuple):
    """A convolution that reads codes of a grid: packed weights, and how sums become values.

    Attributes:
        conv: what `PackedConv` packed; to convolve by itself, an `IntegerConv`.
        grid: of what it reads.
        scaling: of its sums.
    """

    conv: Any
    grid: Grid
    scaling: Scaling

    def to_codes(self, x: Tensor, out: Grid) -> Tensor:
        """Convolve codes (N,I,H,W) and quantize the result to ``out``, in one pass where that is exact."""
        if out.divisor is None:
            return encode(self.to_float(x), out)
        return self.conv.to_codes(x, self.grid, self.scaling, out)

    def to_float(self, x: Tensor) -> Tensor:
        """Convolve codes (N,I,H,W); the result is float32."""
        return self.conv.to_float(x, self.grid, self.scaling)


class PackedConv:
    """A quantized convolution, its weights packed once per width of the weights that is asked for.

    Widths of activations need no pack of their own, so that all bit rows share one, unless the weights
    take the activation's width.

    Args:
        conv: the convolution.
        outputs: a part of its output channels; not for grouped convolutions.
        pack: what packs weights: takes what `IntegerConv` takes.
    """

    def __init__(
        self,
        conv: QuantConv2d,
        outputs: slice = slice(None),
        *,
        pack: Callable[..., Any] = IntegerConv,
    ) -> None:
        self._conv = conv
        self._outputs = outputs
        self._packer = pack
        self._packs: dict[tuple[int, bool], tuple[Any, Tensor]] = {}
        self._steps: dict[Grid, Step] = {}  # one per width: rows have hundreds of combinations of few grids

    def reading(self, grid: Grid) -> Step:
        """Return the convolution for inputs on ``grid``."""
        if grid not in self._steps:
            same = self._conv.weight_bits == "same"
            packed, scale = self._pack(
                grid.bits if same else int(self._conv.weight_bits), shifted=grid.zero != 0
            )
            bias = None if self._conv.bias is None else self._conv.bias[self._outputs]
            self._steps[grid] = Step(packed, grid, Scaling(scale * float(grid.scale), bias))
        return self._steps[grid]

    def _pack(self, bits: int, *, shifted: bool) -> tuple[Any, Tensor]:
        if (bits, shifted) not in self._packs:
            conv = self._conv
            with torch.no_grad():
                codes, scale = weight_codes(conv.weight, bits)
            packed = self._packer(
                codes[self._outputs],
                stride=conv.stride,
                padding=conv.padding,
                dilation=conv.dilation,
                groups=conv.groups,
                shifted=shifted,
            )
            self._packs[bits, shifted] = packed, scale
        return self._packs[bits, shifted]

    def __len__(self) -> int:
        return len(self._packs)
