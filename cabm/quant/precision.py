"""The four kinds of precision, as choices of quantizer (DESIGN: one backbone, four precisions)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from cabm.quant.layers import (
    AssignedActivation,
    FloatActivation,
    PamsActivation,
    QuantConv2d,
    QuantConvTranspose2d,
    SelectedActivation,
)

Kind = Literal["float", "pams", "cadyq", "cabm"]
KINDS: tuple[Kind, ...] = ("float", "pams", "cadyq", "cabm")
FIXED_BITS = 8


@dataclass(frozen=True)
class Precision:
    """How the quantized positions of a backbone compute.

    Attributes:
        kind: float, pams (one learned width), cadyq (selector per position), cabm (bits given).
        search_space: ascending widths for adaptive positions, each 2..8; with 0 in front, residual branches
            can be skipped (`cabm.quant.branch`).
        weight_bits: 2..8, or "same" as the activation that the convolution reads.
        quantize_ends: 8 bits for the other convolutions too: head, tail and what lies between (the
            "fully" quantized rows of the tables).
    """

    kind: Kind = "float"
    search_space: tuple[int, ...] = (4, 6, 8)
    weight_bits: int | Literal["same"] = 8
    quantize_ends: bool = False

    @property
    def skips(self) -> bool:
        """Whether residual branches can be skipped: 0 is among the widths."""
        return self.kind in ("cadyq", "cabm") and 0 in self.search_space


class Quantizers:
    """Hands a backbone its quantizers while it is built, and numbers the adaptive positions.

    Attributes:
        num_adaptive: how many there are so far.
        branches: adaptive positions of each residual branch that can be skipped, the first opens it.
    """

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.num_adaptive = 0
        self.branches: list[tuple[int, ...]] = []

    def adaptive(self, channels: int, *, opens: int = 0) -> nn.Module:
        """Quantizer of the next adaptive position.

        Args:
            channels: of its input.
            opens: how many adaptive positions stand in the residual branch that it opens and
                `cabm.quant.branch.run_branch` runs, this one included. Such a position takes 0 bits if
                the search space has them; no other does.
        """
        position = self.num_adaptive
        self.num_adaptive += 1
        widths = self.precision.search_space
        if opens:
            self.branches.append(tuple(range(position, position + opens)))
        else:
            widths = tuple(bits for bits in widths if bits)
        match self.precision.kind:
            case "float":
                return FloatActivation()
            case "pams":
                return PamsActivation(FIXED_BITS)
            case "cadyq":
                return SelectedActivation(widths, position, channels, max(opens, 1))
            case "cabm":
                return AssignedActivation(widths, position, max(opens, 1))
        raise ValueError(f"unknown kind of precision {self.precision.kind!r}; one of {KINDS}")

    def fixed(self) -> nn.Module:
        """Quantizer of a position that is 8-bit in every quantized kind."""
        return FloatActivation() if self.precision.kind == "float" else PamsActivation(FIXED_BITS)

    def conv(self, in_channels: int, out_channels: int, kernel_size: int, **options: object) -> nn.Conv2d:
        """Convolution that reads a quantized position; "same" padding unless told otherwise."""
        options.setdefault("padding", kernel_size // 2)
        if self.precision.kind == "float":
            return nn.Conv2d(in_channels, out_channels, kernel_size, **options)
        bits = self.precision.weight_bits
        return QuantConv2d(in_channels, out_channels, kernel_size, weight_bits=bits, **options)

    def fixed_conv(
        self, in_channels: int, out_channels: int, kernel_size: int, **options: object
    ) -> nn.Conv2d:
        """Convolution that reads a `fixed` quantizer; "same" padding unless told otherwise."""
        options.setdefault("padding", kernel_size // 2)
        if self.precision.kind == "float":
            return nn.Conv2d(in_channels, out_channels, kernel_size, **options)
        return QuantConv2d(in_channels, out_channels, kernel_size, weight_bits=FIXED_BITS, **options)

    @property
    def quantizes_ends(self) -> bool:
        """Whether the convolutions outside the adaptive body are quantized."""
        return self.precision.quantize_ends and self.precision.kind != "float"

    def end(self) -> nn.Module:
        """Quantizer in front of a convolution outside the adaptive body: head, tail, fusion."""
        return PamsActivation(FIXED_BITS) if self.quantizes_ends else FloatActivation()

    def end_conv(
        self, in_channels: int, out_channels: int, kernel_size: int, **options: object
    ) -> nn.Conv2d:
        """Convolution that reads an `end` quantizer; "same" padding unless told otherwise."""
        options.setdefault("padding", kernel_size // 2)
        if not self.quantizes_ends:
            return nn.Conv2d(in_channels, out_channels, kernel_size, **options)
        return QuantConv2d(in_channels, out_channels, kernel_size, weight_bits=FIXED_BITS, **options)

    def end_deconv(
        self, in_channels: int, out_channels: int, kernel_size: int, **options: object
    ) -> nn.ConvTranspose2d:
        """Transposed convolution that reads an `end` quantizer."""
        if not self.quantizes_ends:
            return nn.ConvTranspose2d(in_channels, out_channels, kernel_size, **options)
        return QuantConvTranspose2d(in_channels, out_channels, kernel_size, **options)
