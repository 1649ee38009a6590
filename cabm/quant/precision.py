"""The four kinds of precision: which quantizers and convolutions a backbone is built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from cabm.errors import InputError
from cabm.quant.functional import PAMS_BITS
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

Reads = Literal["adaptive", "fixed", "end"]
"""Which quantizer a convolution reads: see the methods of `Quantizers` of these names."""


@dataclass(frozen=True)
class Precision:
    """How the quantized positions of a backbone compute.

    Attributes:
        kind: float, pams (8 bits, learned clip values), cadyq (a bit selector per position) or cabm (bits
            from a table).
        search_space: widths of adaptive positions, ascending, each 2..8.
        weight_bits: width of the weights that read an adaptive position, 2..8, or "same" as the activation.
        quantize_ends: quantize the convolutions outside the body to 8 bits, too: head, tail and fusion.

    Raises:
        InputError: the search space is empty, not ascending, or has widths outside 2..8.
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

    def adaptive(self, channels: int) -> nn.Module:
        """Return the quantizer of the next adaptive position, for an input of ``channels`` channels."""
        position = self.num_adaptive
        self.num_adaptive += 1
        match self.precision.kind:
            case "float":
                return FloatActivation()
            case "pams":
                return PamsActivation()
            case "cadyq":
                return SelectedActivation(self.precision.search_space, position, channels)
            case "cabm":
                return AssignedActivation(self.precision.search_space, position)
        raise ValueError(f"unknown kind of precision {self.precision.kind!r}; one of {KINDS}")

    def fixed(self) -> nn.Module:
        """Return the quantizer of a position that has 8 bits in all quantized kinds."""
        return FloatActivation() if self.precision.kind == "float" else PamsActivation()

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
        return QuantConv2d(*shape, weight_bits=bits, **options)
