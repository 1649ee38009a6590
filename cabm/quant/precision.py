"""Which quantizers and convolutions a backbone of each kind of precision is built from."""

from __future__ import annotations

from typing import Literal

from torch import nn

from cabm.quant.kinds import KINDS, Precision
from cabm.quant.layers import (
    AssignedActivation,
    FloatActivation,
    PamsActivation,
    QuantConv2d,
    QuantConvTranspose2d,
    SelectedActivation,
)
from cabm.quant.levels import PAMS_BITS
from cabm.quant.skip import QuantizedSkip, ReadSkip

Reads = Literal["adaptive", "fixed", "end"]
"""Which quantizer a convolution reads: see the methods of `Quantizers` of these names."""


class Quantizers:
    """Gives a backbone its quantizers and convolutions, and numbers the adaptive positions.

    Args:
        precision: decides what a backbone gets.

    Attributes:
        num_adaptive: number of adaptive positions so far.
    """

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.num_adaptive = 0

    @property
    def quantizes_ends(self) -> bool:
        """Whether the convolutions outside the body are quantized."""
        return self.precision.quantize_ends and self.precision.kind != "float"

    def adaptive(self, channels: int, *, non_negative: bool = False) -> nn.Module:
        """Return the quantizer of the next adaptive position.

        Args:
            channels: number of channels of the input.
            non_negative: whether the input is never negative, as behind a ReLU.
        """
        unsigned = self._unsigned(non_negative)
        position = self.num_adaptive
        self.num_adaptive += 1
        widths = self.precision.search_space
        match self.precision.kind:
            case "float":
                return FloatActivation()
            case "pams":
                return PamsActivation(unsigned=unsigned)
            case "cadyq":
                return SelectedActivation(widths, position, channels, unsigned=unsigned)
            case "cabm":
                return AssignedActivation(widths, position, unsigned=unsigned)
        raise ValueError(f"unknown kind of precision {self.precision.kind!r}; one of {KINDS}")

    def fixed(self, *, non_negative: bool = False) -> nn.Module:
        """Return the quantizer of a position that has 8 bits in all quantized kinds; see `adaptive`."""
        if self.precision.kind == "float":
            return FloatActivation()
        return PamsActivation(unsigned=self._unsigned(non_negative))

    def skip(self) -> nn.Module:
        """Return the skip connection of a residual block; see `QuantizedSkip` and `ReadSkip`."""
        own_grid = self.precision.kind != "float" and self.precision.skip == 8
        return QuantizedSkip() if own_grid else ReadSkip()

    def _unsigned(self, non_negative: bool) -> bool:
        return non_negative and self.precision.after_relu == "unsigned"

    def end(self) -> nn.Module:
        """Return the quantizer before a convolution outside the body: head, tail or fusion."""
        return PamsActivation() if self.quantizes_ends else FloatActivation()

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        reads: Reads = "adaptive",
        transposed: bool = False,
        **options: object,
    ) -> nn.Conv2d | nn.ConvTranspose2d:
        """Return a convolution with "same" padding, unless ``options`` say otherwise.

        Args:
            in_channels, out_channels, kernel_size: as in `torch.nn.Conv2d`.
            reads: which quantizer its input comes from.
            transposed: return a transposed convolution; only one that reads an end.
            options: further arguments of `torch.nn.Conv2d` or `torch.nn.ConvTranspose2d`.
        """
        options.setdefault("padding", kernel_size // 2)
        shape = (in_channels, out_channels, kernel_size)
        if self.precision.kind == "float" or (reads == "end" and not self.quantizes_ends):
            return nn.ConvTranspose2d(*shape, **options) if transposed else nn.Conv2d(*shape, **options)
        if transposed:
            assert reads == "end", "transposed convolutions have 8-bit weights"
            return QuantConvTranspose2d(*shape, **options)
        bits = self.precision.weight_bits if reads == "adaptive" else PAMS_BITS
        per_channel = self.precision.weight_granularity == "channel"
        return QuantConv2d(*shape, weight_bits=bits, per_channel=per_channel, **options)
