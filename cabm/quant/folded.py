"""Quantization without codes, for running a trained model in floats of any precision.

The simulation convolves codes, rescales the sums and quantizes the weights at every call, so that training
sees the engine's integers. To run a model, its weights are quantized once, and each quantizer is one or two
elementwise operations: values stay values. Sums of codes would not fit half precision either.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from cabm.quant.context import PrecisionContext
from cabm.quant.layers import (
    AssignedActivation,
    PamsActivation,
    QuantConv2d,
    QuantConvTranspose2d,
    SelectedActivation,
)

Model = TypeVar("Model", bound=nn.Module)


def foldable(model: nn.Module) -> bool:
    """Return whether `fold` takes a model: all its weights have one width, and no width is selected."""
    return not any(
        isinstance(module, SelectedActivation) or getattr(module, "weight_bits", None) == "same"
        for module in model.modules()
    )


@torch.no_grad()
def fold(model: Model) -> Model:
    """Return a copy of a trained model that computes on the same quantized values, but not on codes."""
    model = deepcopy(model)
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, QuantConv2d | QuantConvTranspose2d):
                setattr(parent, name, _plain(module))
            elif isinstance(module, PamsActivation):
                setattr(parent, name, FixedValues(module))
            elif isinstance(module, AssignedActivation):
                setattr(parent, name, AssignedValues(module))
    return model


class FixedValues(nn.Module):
    """Quantizes to the values of one width, in one operation; replaces `PamsActivation`."""

    def __init__(self, quantizer: PamsActivation) -> None:
        super().__init__()
        self._levels = int(quantizer.levels)
        self.register_buffer("step", quantizer.alpha / quantizer.levels)
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32))

    def forward(self, x: Tensor, context: PrecisionContext) -> Tensor:
        """Return the nearest values to ``x`` (B,C,H,W), in its type."""
        return torch.fake_quantize_per_tensor_affine(x, self.step, self.zero, -self._levels, self._levels)


class AssignedValues(nn.Module):
    """Quantizes to the values of the table's widths, in two operations; replaces `AssignedActivation`."""

    def __init__(self, quantizer: AssignedActivation) -> None:
        super().__init__()
        self._position = quantizer.position
        self._most = int(quantizer.levels.max())
        size = max(quantizer.search_space) + 1
        for name, values in (("alphas", quantizer.alpha), ("steps", quantizer.alpha / quantizer.levels)):
            by_width = torch.ones(size)
            by_width[list(quantizer.search_space)] = values
            self.register_buffer(name, by_width)

    def forward(self, x: Tensor, context: PrecisionContext) -> Tensor:
        """Return the nearest values to ``x`` (B,C,H,W), in its type, at the widths of the context."""
        assert context.bits is not None, "table-assigned bits are missing"
        bits = context.bits[:, self._position]
        alpha = self.alphas[bits].to(x.dtype).view(-1, 1, 1, 1)
        clipped = torch.clamp(x, -alpha, alpha)  # so that no code exceeds those of its width
        zeros = torch.zeros_like(bits, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            clipped, self.steps[bits], zeros, 0, -self._most, self._most
        )


def in_half(model: Model, dtype: torch.dtype = torch.float16) -> Model:
    """Convert a folded or float model, in place, to half precision and channels last.

    The steps of quantizers and the statistics of batch norms stay float32, as their operations want them.
    """
    model = model.to(dtype, memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, FixedValues | AssignedValues | nn.BatchNorm2d):
            module.float()
    return model


def _plain(conv: QuantConv2d | QuantConvTranspose2d) -> nn.Conv2d | nn.ConvTranspose2d:
    """Return a convolution with the values of quantized weights."""
    options = {
        name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")
    }
    kind = nn.Conv2d
    if isinstance(conv, nn.ConvTranspose2d):
        kind, options["output_padding"] = nn.ConvTranspose2d, conv.output_padding
    shape = conv.in_channels, conv.out_channels, conv.kernel_size
    plain = kind(*shape, bias=conv.bias is not None, **options)
    codes, scale = conv.codes(conv.weight_bits)
    plain.weight.copy_(codes * (scale.transpose(0, 1) if scale.dim() == 4 else scale))
    if conv.bias is not None:
        plain.bias.copy_(conv.bias)
    return plain
