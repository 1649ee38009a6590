"""Quantizers of activations, and convolutions with quantized weights.

A quantizer is called as ``quantizer(x, context)``. It returns a `Quantized`, or ``x`` itself in full
precision and during calibration; `values` turns both into a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.quant.context import PrecisionContext
from cabm.quant.functional import (
    assigned_codes,
    channel_deviation,
    rescale,
    selected_codes,
    weight_codes,
)
from cabm.quant.levels import PAMS_BITS, num_levels


class Quantized:
    """A quantized activation: value = codes * scale. Codes and values are computed on demand.

    Each has its own path back through the quantizer, because their gradients differ in precision: that of
    the codes comes from a convolution and may be bfloat16, that of the values comes along the skip
    connections and must stay in float32.

    Args:
        quantize: returns the codes when called with False and the values when called with True; both are
            (B,C,H,W) with gradient.
        scale: (B,1,1,1) or (1,1,1,1) alpha / n, without gradient.
        bits: (B,) widths, or one int for all samples.
    """

    def __init__(self, quantize: Callable[[bool], Tensor], scale: Tensor, bits: Tensor | int) -> None:
        self._quantize = quantize
        self.scale = scale
        self.bits = bits

    @cached_property
    def codes(self) -> Tensor:
        """Integers (B,C,H,W) in -n..n, in the float type that convolutions compute in."""
        return self._quantize(False)

    def values(self) -> Tensor:
        """Return codes * scale (B,C,H,W)."""
        return self._quantize(True)


def values(x: Tensor | Quantized) -> Tensor:
    """Return the result of a quantizer as a tensor."""
    return x.values() if isinstance(x, Quantized) else x


class FloatActivation(nn.Module):
    """Full precision: returns its input."""

    def forward(self, x: Tensor, context: PrecisionContext) -> Tensor:
        """Return ``x``."""
        return x


class _ClippedActivation(nn.Module):
    """Base of the quantizers with learned clip values ``alpha``; subclasses implement `quantize`."""

    def forward(self, x: Tensor, context: PrecisionContext) -> Tensor | Quantized:
        """Quantize ``x`` (B,C,H,W), or record and return it during calibration."""
        if context.observer is not None:
            context.observer.record(self, x)
            return x
        return self.quantize(x, context)

    def quantize(self, x: Tensor, context: PrecisionContext) -> Quantized:
        """Quantize ``x`` (B,C,H,W)."""
        raise NotImplementedError


class PamsActivation(_ClippedActivation):
    """Quantizer of one width and one learned clip value (PAMS).

    Args:
        bits: the width.
        unsigned: use codes 0..2^b - 1, for an input that is never negative, instead of both signs.
    """

    def __init__(self, bits: int = PAMS_BITS, *, unsigned: bool = False) -> None:
        super().__init__()
        self.bits = bits
        self.unsigned = unsigned
        self.alpha = nn.Parameter(torch.ones(1))
        levels = float(num_levels(bits, unsigned=unsigned))
        self.register_buffer("levels", torch.tensor([levels]), persistent=False)

    def quantize(self, x: Tensor, context: PrecisionContext) -> Quantized:
        """Quantize ``x`` (B,C,H,W)."""
        scale = (self.alpha.detach() / self.levels).view(1, 1, 1, 1)
        levels = num_levels(self.bits, unsigned=self.unsigned)
        return Quantized(
            lambda decoded: assigned_codes(x, self.alpha, levels, decoded=decoded), scale, self.bits
        )

    def extra_repr(self) -> str:
        """Show the width."""
        return f"bits={self.bits}, unsigned={self.unsigned}"


class SearchSpaceActivation(_ClippedActivation):
    """Base of the quantizers that choose among widths: one learned clip value per width.

    Args:
        search_space: ascending widths.
        position: number of the adaptive position, from 0.
        unsigned: see `PamsActivation`.
    """

    def __init__(self, search_space: Sequence[int], position: int, *, unsigned: bool = False) -> None:
        super().__init__()
        self.search_space = tuple(search_space)
        self.position = position
        self.unsigned = unsigned
        self.alpha = nn.Parameter(torch.ones(len(self.search_space)))
        levels = [float(num_levels(bits, unsigned=unsigned)) for bits in self.search_space]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("widths", torch.tensor(self.search_space), persistent=False)

    def _scale(self, index: Tensor) -> Tensor:
        return (self.alpha.detach() / self.levels)[index].view(-1, 1, 1, 1)

    def extra_repr(self) -> str:
        """Show the search space and the position."""
        return f"search_space={self.search_space}, position={self.position}"


class SelectedActivation(SearchSpaceActivation):
    """Quantizer whose linear selector chooses a width per sample (CADyQ, section 3.2).

    Args:
        search_space, position: see `SearchSpaceActivation`.
        channels: number of channels of the input.
    """

    def __init__(
        self, search_space: Sequence[int], position: int, channels: int, *, unsigned: bool = False
    ) -> None:
        super().__init__(search_space, position, unsigned=unsigned)
        self.selector = nn.Linear(channels + 2, len(self.search_space))
        with torch.no_grad():  # equal scores except for the last bias, so training starts at the widest
            self.selector.weight.fill_(1.0)
            self.selector.bias.zero_()
            self.selector.bias[-1] = 1.0

    def quantize(self, x: Tensor, context: PrecisionContext) -> Quantized:
        """Quantize each sample of ``x`` (B,C,H,W) at its selected width.

        Forward takes the width of the highest score; backward differentiates the softmax mixture of all.
        """
        assert context.gradient is not None, "a selector needs the image gradient"
        with torch.autocast(x.device.type, enabled=False):
            deviation = channel_deviation(x.detach())
            scores = self.selector(torch.cat([context.gradient, deviation], dim=1))
            probabilities = scores.softmax(dim=1)
            index = scores.argmax(dim=1)
            expected = probabilities @ self.widths.to(probabilities.dtype)
        bits = self.widths[index]
        context.report(bits, expected)
        settings = (self.alpha, probabilities, index, self.levels)
        return Quantized(
            lambda decoded: selected_codes(x, *settings, decoded=decoded), self._scale(index), bits
        )


class AssignedActivation(SearchSpaceActivation):
    """Quantizer whose width per sample is given from outside, by a table (CABM)."""

    def quantize(self, x: Tensor, context: PrecisionContext) -> Quantized:
        """Quantize each sample of ``x`` (B,C,H,W) at the width ``context.bits[:, position]``.

        Raises:
            ValueError: a width is not in the search space.
        """
        assert context.bits is not None, "table-assigned bits are missing"
        bits = context.bits[:, self.position]
        matches = bits[:, None] == self.widths[None, :]
        if not bool(matches.any(dim=1).all()):
            raise ValueError(
                f"bits {sorted(set(bits.tolist()))} at position {self.position} are not all in the "
                f"search space {list(self.search_space)}"
            )
        context.report(bits)
        index = matches.int().argmax(dim=1)
        alpha, levels = self.alpha[index], self.levels[index]
        return Quantized(
            lambda decoded: assigned_codes(x, alpha, levels, decoded=decoded), self._scale(index), bits
        )


class QuantConv2d(nn.Conv2d):
    """Convolution with quantized weights, computed on the codes of a quantized input.

    Args:
        args, kwargs: as for `torch.nn.Conv2d`.
        weight_bits: 2..8, or "same": for each sample the width of its activation. The BitOPs of the CABM
            paper count "same"; the released code keeps 8.
        per_channel: give each output channel its own scale instead of one for the tensor.
    """

    def __init__(
        self,
        *args: object,
        weight_bits: int | str = PAMS_BITS,
        per_channel: bool = False,
        **kwargs: object,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.weight_bits = weight_bits
        self.per_channel = per_channel

    def codes(self, bits: int) -> tuple[Tensor, Tensor]:
        """Return the weight's codes and scale at a width; see `weight_codes`."""
        return weight_codes(self.weight, bits, per_channel=self.per_channel)

    def forward(self, x: Tensor | Quantized) -> Tensor:
        """Convolve (B,C,H,W); the result is a float tensor."""
        bits = self.weight_bits
        if bits == "same":
            bits = x.bits if isinstance(x, Quantized) else PAMS_BITS
        if isinstance(bits, Tensor):
            return self._forward_by_width(x)
        codes, scale = self.codes(bits)
        if isinstance(x, Quantized):
            x, scale = x.codes, x.scale * scale
        return rescale(self._conv(x, codes), scale, self.bias)

    def _forward_by_width(self, x: Quantized) -> Tensor:
        """Convolve the samples of each width together, so every sample is convolved once."""
        order = torch.argsort(x.bits, stable=True)
        widths, counts = torch.unique_consecutive(x.bits[order], return_counts=True)
        parts = []
        sorted_codes = x.codes[order]
        sorted_scale = x.scale[order]
        start = 0
        for width, count in zip(widths.tolist(), counts.tolist(), strict=True):
            codes, scale = self.codes(width)
            chunk = slice(start, start + count)
            y = self._conv(sorted_codes[chunk], codes)
            parts.append(rescale(y, sorted_scale[chunk] * scale, self.bias))
            start += count
        return torch.cat(parts)[torch.argsort(order)]

    def _conv(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """Show the width of the weights, too."""
        return f"{super().extra_repr()}, weight_bits={self.weight_bits}, per_channel={self.per_channel}"


class QuantConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution with weights quantized per tensor to 8 bits."""

    weight_bits = PAMS_BITS
    per_channel = False

    def codes(self, bits: int) -> tuple[Tensor, Tensor]:
        """Return the weight's codes and scale at a width; see `weight_codes`."""
        return weight_codes(self.weight, bits)

    def forward(self, x: Tensor | Quantized, output_size: list[int] | None = None) -> Tensor:
        """Convolve (B,C,H,W); the result is a float tensor of height and width ``output_size``."""
        quantized = isinstance(x, Quantized)
        codes, scale = self.codes(self.weight_bits)
        read = x.codes if quantized else x
        extra = self._output_padding(
            read, output_size, list(self.stride), list(self.padding), list(self.kernel_size), 2
        )
        y = F.conv_transpose2d(
            read, codes, None, self.stride, self.padding, extra, self.groups, self.dilation
        )
        return rescale(y, x.scale * scale if quantized else scale, self.bias)
