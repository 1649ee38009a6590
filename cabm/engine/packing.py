"""A model's quantizers, and its quantized convolutions with packed weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from cabm.engine.grid import Grid, Storage

Row = tuple[int, ...] | None
"""Bits of the L adaptive layers; None for a PAMS model."""


@dataclass(frozen=True)
class Quantizer:
    """A quantizer's clip values.

    Attributes:
        alphas: clip values, > 0, one for each width.
        widths: bits.
        unsigned: codes are never negative.
        position: its place in a row of bits; None if it always has the first of its widths.
    """

    alphas: tuple[float, ...]
    widths: tuple[int, ...]
    unsigned: bool = False
    position: int | None = None

    def bits(self, row: Row) -> int:
        """Return the width at a row of bits."""
        if self.position is None:
            return self.widths[0]
        assert row is not None
        return row[self.position]

    def grid(self, row: Row, storage: Storage) -> Grid:
        """Return the byte grid at a row of bits."""
        bits = self.bits(row)
        return Grid(self.alphas[self.widths.index(bits)], bits, storage, self.unsigned)

    @property
    def input_storage(self) -> Storage:
        """Storage of codes that a convolution reads: unsigned ones need no shift."""
        return Storage.POSITIVE if self.unsigned else Storage.SHIFTED


@dataclass(frozen=True, eq=False)
class Scaling:
    """How a convolution's integer sums become values: sum * factors + bias, in float32.

    Attributes:
        factors: (1,), or (O,) for a factor per output channel; > 0.
        bias: (O,) or None.
    """

    factors: np.ndarray
    bias: np.ndarray | None

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Factors and biases; each one number, or one per output channel."""
        return self.factors, np.zeros(1, np.float32) if self.bias is None else self.bias


@dataclass(frozen=True, eq=False)
class BoundConv:
    """A packed convolution bound to the grid of its input.

    Attributes:
        conv: the packed weights: `cabm.engine.fused.CompiledWeights`, or `cabm.engine.onednn.IntegerConv`.
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


@dataclass(frozen=True, eq=False)
class PackedConv:
    """A quantized convolution with packed weights, which all rows of bits share.

    Attributes:
        packs: the packed weights by their width; see `BoundConv`.
        scales: (1,) or (O,) float32 steps of the weights, by their width.
        weight_bits: width of the weights, or ``same`` as the input's.
        bias: (O,) float32 or None.
        after: factors and biases (O,) float32 that follow the convolution; None: nothing follows.
    """

    packs: dict[int, Any]
    scales: dict[int, np.ndarray]
    weight_bits: int | Literal["same"]
    bias: np.ndarray | None = None
    after: tuple[np.ndarray, np.ndarray] | None = None
    # few: hundreds of rows combine a few widths per layer
    _bound: dict[Grid, BoundConv] = field(default_factory=dict, init=False, repr=False)

    def at(self, grid: Grid) -> BoundConv:
        """Return the convolution for inputs on ``grid``."""
        if grid not in self._bound:
            bits = grid.bits if self.weight_bits == "same" else self.weight_bits
            factors, bias = self.scales[bits] * grid.scale, self.bias
            if self.after is not None:
                gain, offset = self.after
                factors, bias = factors * gain, offset if bias is None else bias * gain + offset
            self._bound[grid] = BoundConv(self.packs[bits], grid, Scaling(factors, bias))
        return self._bound[grid]
