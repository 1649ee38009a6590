"""Float convolutions around the quantized ones, and tails that are not linear."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.engine.elementwise import dense
from cabm.engine.onednn import pointwise_float_conv
from cabm.models.tail import before_pixel_shuffle


class FloatConv:
    """A convolution with "same" padding that computes in a given type.

    Args:
        weight: (O,I,k,k), k odd.
        bias: (O,) or None.
        dtype: float32 or bfloat16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._weight = dense(weight.detach().to(dtype))
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._padding = weight.shape[-1] // 2

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve (N,I,h,w); the result is of the convolution's type."""
        x = dense(x.to(self._weight.dtype))
        if self._padding == 0 and x.dtype == torch.float32:
            return dense(pointwise_float_conv(x, self._weight, self._bias))
        return dense(F.conv2d(x, self._weight, self._bias, padding=self._padding))


class ActiveTail:
    """conv, PixelShuffle, (leaky) ReLU, ..., conv: the upscaling tail of SRResNet and CARN.

    The last convolution runs before the last PixelShuffle, which changes no number, gives its units more
    than three channels to fill, and saves moving the finest grid.

    In bfloat16 the image travels along in three channels of its own, which no activation changes because
    pixels are not negative, and the last convolution subtracts it. What is rounded to 8 bits of
    mantissa is then a small difference; the image is added again in float32.

    Args:
        convs: the convolutions, first to last.
        factors: r of the PixelShuffle after each but the last.
        slopes: of the activation after each PixelShuffle; 0 for ReLU.
        gain: factor on the result.
        offset: (3,) added to the result before that factor.
        dtype: what the convolutions compute in.
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
        self._carries = dtype != torch.float32
        self._scale = 1
        for factor in factors:
            self._scale *= factor
        weight = before_pixel_shuffle(last.weight.detach(), factors[-1]) * gain
        bias = torch.zeros(last.out_channels) if last.bias is None else last.bias.detach()
        if offset is not None:
            bias = bias + offset.flatten()
        phases = factors[-1] ** 2
        bias = bias.repeat_interleave(phases) * gain
        stages = [(conv.weight.detach(), conv.bias) for conv in upsampling]
        if self._carries:
            copies = [factor**2 for factor in factors[:-1]] + [1]
            stages = [_with_image(*stage, count) for stage, count in zip(stages, copies, strict=True)]
            weight = _minus_image(weight, phases)
        # bfloat16 rounds the mean colour by up to a quarter of a level; what it takes is given back
        self._remainder = (bias - bias.to(dtype).float())[::phases].view(1, -1, 1, 1)
        self._stages = [FloatConv(*stage, dtype) for stage in stages]
        self._last = FloatConv(weight, bias, dtype)

    def __call__(self, feature: Tensor, image: Tensor) -> Tensor:
        """Return the upscaled image (N,3,h*R,w*R) float32.

        Args:
            feature: (N,n,h,w) float32.
            image: (N,3,h,w) float32 in 0..255; only an aid to precision.
        """
        x = torch.cat([feature, image], dim=1) if self._carries else feature
        for stage, factor in zip(self._stages[:-1], self._factors[:-1], strict=True):
            x = F.pixel_shuffle(stage(x), factor)
            x = F.leaky_relu(x, self._slopes[0], inplace=True)
        x = F.leaky_relu(self._stages[-1](x), self._slopes[-1], inplace=True)
        y = F.pixel_shuffle(self._last(x).float(), self._factors[-1])
        if self._carries:
            image = image.to(self._dtype).float() + self._remainder
            y.add_(F.interpolate(image, scale_factor=self._scale, mode="nearest"))
        return y


def _with_image(weight: Tensor, bias: Tensor | None, copies: int) -> tuple[Tensor, Tensor | None]:
    """Let a convolution (O,I,k,k) pass three more channels through, each ``copies`` times."""
    outputs, inputs, size, _ = weight.shape
    wider = weight.new_zeros(outputs + 3 * copies, inputs + 3, size, size)
    wider[:outputs, :inputs] = weight
    extra = torch.arange(3 * copies)
    wider[outputs + extra, inputs + extra // copies, size // 2, size // 2] = 1
    return wider, None if bias is None else F.pad(bias.detach(), (0, 3 * copies))


def _minus_image(weight: Tensor, phases: int) -> Tensor:
    """Let a convolution (3*phases,I,k,k) subtract three more channels, a colour each."""
    outputs, inputs, size, _ = weight.shape
    wider = F.pad(weight, (0, 0, 0, 0, 0, 3))
    output = torch.arange(outputs)
    wider[output, inputs + output // phases, size // 2, size // 2] = -1
    return wider
