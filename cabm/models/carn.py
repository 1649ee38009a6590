"""CARN (Ahn et al., ECCV 2018): residual blocks, whose outputs are fused by 1x1 convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.models.base import Backbone, SROutput, grid_reach, pixel_mean, upsample_factors
from cabm.quant import Precision, PrecisionContext, Quantizers

NUM_STEPS = 3  # residual blocks per cascading block, and cascading blocks


class ResidualBlock(nn.Module):
    """Two quantized convolutions. The skip connection takes the input before quantization.

    Args:
        num_features: n.
        quantizers: of the backbone.
        non_negative: whether the input comes from a ReLU: in all blocks but the network's first.
    """

    def __init__(self, num_features: int, quantizers: Quantizers, *, non_negative: bool) -> None:
        super().__init__()
        self.act1 = quantizers.adaptive(num_features, non_negative=non_negative)
        self.conv1 = quantizers.conv(num_features, num_features, 3)
        self.act2 = quantizers.adaptive(num_features, non_negative=True)
        self.conv2 = quantizers.conv(num_features, num_features, 3)

    def forward(self, x: Tensor, context: PrecisionContext) -> tuple[Tensor, list[Tensor]]:
        """Return the output (B,n,h,w) and a list with the feature for distillation."""
        hidden = F.relu(self.conv1(self.act1(x, context)), inplace=True)
        feature = self.conv2(self.act2(hidden, context))
        return F.relu(feature + x), [feature]


class Cascade(nn.Module):
    """A sequence of blocks. After each, a 1x1 convolution fuses the input and all outputs so far."""

    def __init__(self, blocks: list[nn.Module], num_features: int, quantizers: Quantizers) -> None:
        super().__init__()
        n = num_features
        self.blocks = nn.ModuleList(blocks)
        self.fusion_act = nn.ModuleList(quantizers.end() for _ in blocks)
        self.fusion = nn.ModuleList(
            quantizers.conv((index + 2) * n, n, 1, reads="end") for index in range(len(blocks))
        )

    def forward(self, x: Tensor, context: PrecisionContext) -> tuple[Tensor, list[Tensor]]:
        """Return the last fusion (B,n,h,w) and the features of all residual blocks."""
        collected, hidden, features = [x], x, []
        for block, act, fusion in zip(self.blocks, self.fusion_act, self.fusion, strict=True):
            hidden, inner = block(hidden, context)
            features += inner
            collected.append(hidden)
            hidden = F.relu(fusion(act(torch.cat(collected, dim=1), context)), inplace=True).to(x.dtype)
        return hidden, features


class CARN(Backbone):
    """CARN for one scale.

    Args:
        scale: 2, 3 or 4.
        precision: how the quantized positions compute.
        num_features: n, channels of the body (64).
    """

    name = "carn"
    gradient_scale = 1.0

    def __init__(self, scale: int, precision: Precision, num_features: int = 64) -> None:
        super().__init__(scale, precision, {"num_features": num_features})
        n = num_features
        quantizers = self.quantizers
        self.register_buffer("mean", pixel_mean() / 255, persistent=False)
        self.head_act = quantizers.end()
        self.head = quantizers.conv(3, n, 3, reads="end")
        cascades = [
            Cascade(
                [
                    ResidualBlock(n, quantizers, non_negative=bool(outer or inner))
                    for inner in range(NUM_STEPS)
                ],
                n,
                quantizers,
            )
            for outer in range(NUM_STEPS)
        ]
        self.body = Cascade(cascades, n, quantizers)
        self.factors = upsample_factors(scale)
        self.upsample_act = nn.ModuleList(quantizers.end() for _ in self.factors)
        self.upsample = nn.ModuleList(quantizers.conv(n, n * r * r, 3, reads="end") for r in self.factors)
        self.tail_act = quantizers.end()
        self.tail = quantizers.conv(n, 3, 3, reads="end")

        self._add_layers()
        reach = grid_reach([1] * (len(self.factors) + 1), self.factors)
        self.receptive_field = 1 + 2 * NUM_STEPS**2 + reach

    def _add_layers(self) -> None:
        self.add_layer("head")
        for outer in range(NUM_STEPS):
            cascade = f"body.blocks.{outer}"
            for inner in range(NUM_STEPS):
                self.add_layer(f"{cascade}.blocks.{inner}.conv1", adaptive=True)
                self.add_layer(f"{cascade}.blocks.{inner}.conv2", adaptive=True)
                self.add_layer(f"{cascade}.fusion.{inner}")
            self.add_layer(f"body.fusion.{outer}")
        self.add_upsampling(self.factors)

    def run(self, x: Tensor, context: PrecisionContext, *, collapse_tail: bool) -> SROutput:
        """Run the network; see `Backbone.run`. Internally pixels are in 0..1. The tail cannot collapse."""
        # under autocast, skip connections stay in the input's type
        head = self.head(self.head_act(x / 255 - self.mean, context)).to(x.dtype)
        feature, features = self.body(head, context)
        upscaled = feature
        for act, conv, factor in zip(self.upsample_act, self.upsample, self.factors, strict=True):
            upscaled = F.pixel_shuffle(F.relu(conv(act(upscaled, context)), inplace=True), factor)
        sr = (self.tail(self.tail_act(upscaled, context)) + self.mean) * 255
        return SROutput(sr, feature, features)
