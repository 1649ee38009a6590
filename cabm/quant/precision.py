"""The four kinds of precision, as choices of quantizer (DESIGN: one backbone, four precisions)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from cabm.errors import InputError
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
        search_space: ascending widths for adaptive positions, each 2..8.
        weight_bits: 2..8, or "same" as the activation that the convolution reads.
        quantize_ends: 8 bits for the other convolutions too: head, tail and what lies between (the
            "fully" quantized rows of the tables).

    Raises:
        InputError: a search space that is empty, not ascending, or has widths outside 2..8.
    """

    kind: Kind = "float"
    search_space: tuple[int, ...] = (4, 6, 8)
    weight_bits: int | Literal["same"] = 8
    quantize_ends: bool = False

    def __post_init__(self) -> None:
        widths = list(self.search_space)
        ascending = bool(widths) and widths == sorted(set(widths))
        if not ascending or not 2 <= widths[0] <= widths[-1] <= 8:
            raise InputError(f"search space {widths}: list ascending widths of 2..8 bits, each once")


class Quantizers:
    """Hands a backbone its quantizers while it is built, and numbers the adaptive positions.

    Attributes:
        num_adaptive: how many there are so far.
    """

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.num_adaptive = 0

    def adaptive(self, channels: int) -> nn.Module:
        """Quantizer of the next adaptive position, whose input has that many channels."""
        position = self.num_adaptive
        self.num_adaptive += 1
        widths = self.precision.search_space
        match self.precision.kind:
            case "float":
                return FloatActivation()
            case "pams":
                return PamsActivation(FIXED_BITS)
            case "cadyq":
                return SelectedActivation(widths, position, channels)
            case "cabm":
                return AssignedActivation(widths, position)
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
