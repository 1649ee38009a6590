"""Activation quantizers and the quantized convolution that a backbone is given.

Every quantizer is called as ``quantizer(x, context)`` and returns a `Quantized` (or, in full precision and
during calibration, the tensor itself); `values` makes a tensor of either.
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
    num_levels,
    rescale,
    selected_codes,
    weight_codes,
)


class Quantized:
    """A quantized activation: value = codes * scale. Codes and values are made when they are asked for.

    Each has its own way back through the quantizer: the gradient of the codes comes from a convolution and
    may be of low precision, that of the values comes along the trunk and must not be.

    Args:
        quantize: called with False returns the codes, with True the values, both (B,C,H,W) with gradient.
        scale: (B,1,1,1) or (1,1,1,1) alpha / n, without gradient.
        bits: (B,) widths, or one int for all samples.
    """

    def __init__(self, quantize: Callable[[bool], Tensor], scale: Tensor, bits: Tensor | int) -> None:
        self._quantize = quantize
        self.scale = scale
        self.bits = bits

    @cached_property
    def codes(self) -> Tensor:
        """Whole numbers (B,C,H,W) in -n..n, in the float type that convolutions compute in."""
        return self._quantize(False)

    def values(self) -> Tensor:
        """Return codes * scale (B,C,H,W)."""
        return self._quantize(True)


def values(x: Tensor | Quantized) -> Tensor:
    """Return the tensor that a quantizer's result stands for."""
    return x.values() if isinstance(x, Quantized) else x


class FloatActivation(nn.Module):
    """Full precision: the input itself."""

    def forward(self, x: Tensor, context: PrecisionContext) -> Tensor:
        """Return ``x``."""
        return x


class PamsActivation(nn.Module):
    """One width, one learned clip value (PAMS)."""

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.bits = bits
        self.alpha = nn.Parameter(torch.ones(1))
        self.register_buffer("levels", torch.tensor([float(num_levels(bits))]), persistent=False)

    def forward(self, x: Tensor, context: PrecisionContext) -> Tensor | Quantized:
        """Quantize ``x`` (B,C,H,W) at the fixed width."""
        if context.observer is not None:
            context.observer.record(self, x)
            return x
        scale = (self.alpha.detach() / self.levels).view(1, 1, 1, 1)
        levels = num_levels(self.bits)
        return Quantized(
            lambda decoded: assigned_codes(x, self.alpha, levels, decoded=decoded), scale, self.bits
        )

    def extra_repr(self) -> str:
        """Name the width."""
        return f"bits={self.bits}"


class SearchSpaceActivation(nn.Module):
    """What selector and table positions share: one clip value per width of the search space.

    Args:
        search_space: ascending widths.
        position: its number among the adaptive positions.
    """

    def __init__(self, search_space: Sequence[int], position: int) -> None:
        super().__init__()
        self.search_space = tuple(search_space)
        self.position = position
        self.alpha = nn.Parameter(torch.ones(len(self.search_space)))
        levels = [float(num_levels(bits)) for bits in self.search_space]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("widths", torch.tensor(self.search_space), persistent=False)

    def _scale(self, index: Tensor) -> Tensor:
        return (self.alpha.detach() / self.levels)[index].view(-1, 1, 1, 1)

    def extra_repr(self) -> str:
        """Name the search space and the position."""
        return f"search_space={self.search_space}, position={self.position}"


class SelectedActivation(SearchSpaceActivation):
    """Width chosen per sample by a linear selector (CADyQ, section 3.2).

    Args:
        search_space, position: see `SearchSpaceActivation`.
        channels: of the input.
    """

    def __init__(self, search_space: Sequence[int], position: int, channels: int) -> None:
        super().__init__(search_space, position)
        self.selector = nn.Linear(channels + 2, len(self.search_space))
        with torch.no_grad():  # all scores equal but for the last bias: training starts at the widest
            self.selector.weight.fill_(1.0)
            self.selector.bias.zero_()
            self.selector.bias[-1] = 1.0

    def forward(self, x: Tensor, context: PrecisionContext) -> Tensor | Quantized:
        """Quantize each sample of ``x`` (B,C,H,W) at its selected width."""
        if context.observer is not None:
            context.observer.record(self, x)
            return x
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
    """Width given per sample from outside: a look-up table's row (CABM)."""

    def forward(self, x: Tensor, context: PrecisionContext) -> Tensor | Quantized:
        """Quantize each sample of ``x`` (B,C,H,W) at the width ``context.bits[:, position]``."""
        if context.observer is not None:
            context.observer.record(self, x)
            return x
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
    """Convolution with weights quantized per tensor, on integer codes where its input has them.

    Args:
        weight_bits: 2..8, or "same": the weights take each sample's activation width, which is what the
            BitOPs of the CABM paper count (the released code keeps 8).
    """

    def __init__(self, *args: object, weight_bits: int | str = 8, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.weight_bits = weight_bits

    def forward(self, x: Tensor | Quantized) -> Tensor:
        """Convolve (B,C,H,W); the result is a float tensor."""
        if not isinstance(x, Quantized):
            codes, scale = weight_codes(self.weight, 8 if self.weight_bits == "same" else self.weight_bits)
            return rescale(self._conv(x, codes), scale, self.bias)
        if self.weight_bits != "same" or isinstance(x.bits, int):
            bits = x.bits if self.weight_bits == "same" else self.weight_bits
            codes, scale = weight_codes(self.weight, bits)
            return rescale(self._conv(x.codes, codes), x.scale * scale, self.bias)
        return self._forward_by_width(x)

    def _forward_by_width(self, x: Quantized) -> Tensor:
        """Run each width's samples together: every sample is convolved once, whatever the mix."""
        order = torch.argsort(x.bits, stable=True)
        widths, counts = torch.unique_consecutive(x.bits[order], return_counts=True)
        parts = []
        sorted_codes = x.codes[order]
        sorted_scale = x.scale[order]
        start = 0
        for width, count in zip(widths.tolist(), counts.tolist(), strict=True):
            codes, scale = weight_codes(self.weight, width)
            chunk = slice(start, start + count)
            y = self._conv(sorted_codes[chunk], codes)
            parts.append(rescale(y, sorted_scale[chunk] * scale, self.bias))
            start += count
        return torch.cat(parts)[torch.argsort(order)]

    def _conv(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """Add the weights' width."""
        return f"{super().extra_repr()}, weight_bits={self.weight_bits}"


class QuantConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution with weights quantized per tensor at 8 bits."""

    def forward(self, x: Tensor | Quantized, output_size: list[int] | None = None) -> Tensor:
        """Convolve (B,C,H,W); the result is a float tensor of the spatial size ``output_size``."""
        quantized = isinstance(x, Quantized)
        codes, scale = weight_codes(self.weight, 8)
        read = x.codes if quantized else x
        extra = self._output_padding(
            read, output_size, list(self.stride), list(self.padding), list(self.kernel_size), 2
        )
        y = F.conv_transpose2d(
            read, codes, None, self.stride, self.padding, extra, self.groups, self.dilation
        )
        return rescale(y, x.scale * scale if quantized else scale, self.bias)
