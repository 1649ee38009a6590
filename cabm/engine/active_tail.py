"""Upscaling tails with activations: conv, PixelShuffle, (leaky) ReLU, ..., conv (SRResNet, CARN)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.engine.float_conv import FloatConv, minus_image
from cabm.engine.float_rows import Layer
from cabm.models.tail import before_pixel_shuffle


class ActiveTail:
    """A tail with an activation after each PixelShuffle.

    The last convolution runs before the last PixelShuffle. This computes the same numbers, makes 3 r^2
    output channels instead of 3, and saves passes over the finest grid.

    In bfloat16 the image passes through the tail in three channels of its own, and the last convolution
    subtracts it (see `minus_image`). Activations leave it as it is, because pixels are not negative.

    Args:
        convs: the convolutions, first to last.
        factors: r of the PixelShuffle after each convolution but the last.
        slopes: negative slope of the activation after each PixelShuffle; 0 for ReLU.
        dtype: type that the convolutions compute in.
        gain: factor on the result.
        offset: (3,) added to the result before that factor.
    """

    def __init__(
        self,
        convs: Sequence[nn.Conv2d],
        factors: Sequence[int],
        slopes: Sequence[float],
        dtype: torch.dtype,
        *,
        gain: float = 1.0,
        offset: Tensor | None = None,
    ) -> None:
        *upsampling, last = convs
        self._factors, self._slopes, self._dtype = tuple(factors), tuple(slopes), dtype
        self._scale = math.prod(factors)
        self._carries_image = dtype != torch.float32
        weight, bias = _last(last, factors[-1], gain, offset)
        phases = factors[-1] ** 2
        stages = [(conv.weight.detach(), conv.bias) for conv in upsampling]
        if self._carries_image:
            copies = [factor**2 for factor in factors[:-1]] + [1]
            stages = [_with_image(*stage, count) for stage, count in zip(stages, copies, strict=True)]
            weight = minus_image(weight, phases)
        # bfloat16 rounds the bias (the mean colour) by up to a quarter of a level; corrected in float32
        self._remainder = (bias - bias.to(dtype).float())[::phases].view(1, -1, 1, 1)
        self._stages = [FloatConv(*stage, dtype) for stage in stages]
        self._last = FloatConv(weight, bias, dtype)

    def __call__(self, feature: Tensor, image: Tensor) -> Tensor:
        """Return the upscaled image (N,3,h*R,w*R) float32.

        Args:
            feature: (N,n,h,w) float32.
            image: (N,3,h,w) float32 in 0..255; used in bfloat16 only, for precision.
        """
        x = torch.cat([feature, image], dim=1) if self._carries_image else feature
        for stage, factor in zip(self._stages[:-1], self._factors[:-1], strict=True):
            x = F.pixel_shuffle(stage(x), factor)
            x = F.leaky_relu(x, self._slopes[0], inplace=True)
        x = F.leaky_relu(self._stages[-1](x), self._slopes[-1], inplace=True)
        y = F.pixel_shuffle(self._last(x).float(), self._factors[-1])
        if self._carries_image:
            image = image.to(self._dtype).float() + self._remainder
            y.add_(F.interpolate(image, scale_factor=self._scale, mode="nearest"))
        return y


def tail_layers(
    convs: Sequence[nn.Conv2d],
    factors: Sequence[int],
    slopes: Sequence[float],
    *,
    gain: float = 1.0,
    offset: Tensor | None = None,
    first_bytes: Literal[1, 2] = 1,
) -> list[Layer]:
    """Return the tail as layers of `cabm.engine.float_rows`.

    Weights of 8 bits in the last convolution would change the image's brightness, so on bytes they have 16.

    Args:
        convs, factors, slopes, gain, offset: as in `ActiveTail`.
        first_bytes: numbers of 8 bits that stand for an input of the first convolution.
    """
    *upsampling, last = convs
    layers = [
        Layer(conv.weight.detach().numpy(), _bias(conv).numpy(), factor, slope)
        for conv, factor, slope in zip(upsampling, factors, slopes, strict=True)
    ]
    layers[0] = replace(layers[0], input_bytes=first_bytes)
    weight, bias = (each.numpy() for each in _scaled(last, gain, offset))
    return [*layers, Layer(weight, bias, weight_bytes=2)]


def _bias(conv: nn.Conv2d) -> Tensor:
    return torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()


def _scaled(conv: nn.Conv2d, gain: float, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with gain and offset."""
    bias = _bias(conv) if offset is None else _bias(conv) + offset.flatten()
    return conv.weight.detach() * gain, bias * gain


def _last(conv: nn.Conv2d, factor: int, gain: float, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the last convolution before the PixelShuffle, with gain and offset."""
    weight, bias = _scaled(conv, gain, offset)
    return before_pixel_shuffle(weight, factor), bias.repeat_interleave(factor**2)


def _with_image(weight: Tensor, bias: Tensor | None, copies: int) -> tuple[Tensor, Tensor | None]:
    """Let a convolution (O,I,k,k) also copy three more input channels, each to ``copies`` outputs."""
    outputs, inputs, size, _ = weight.shape
    wider = weight.new_zeros(outputs + 3 * copies, inputs + 3, size, size)
    wider[:outputs, :inputs] = weight
    extra = torch.arange(3 * copies)
    wider[outputs + extra, inputs + extra // copies, size // 2, size // 2] = 1
    return wider, None if bias is None else F.pad(bias.detach(), (0, 3 * copies))
