"""EDSR (Lim et al., CVPRW 2017): residual blocks without batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.models.base import Backbone, QuantizedLayer, SROutput, conv_macs, pixel_mean
from cabm.models.tail import collapse
from cabm.quant import Precision, PrecisionContext, Quantizers, values


class ResidualBlock(nn.Module):
    """Two quantized convolutions around a ReLU; the quantized input is also the skip."""

    def __init__(self, num_features: int, res_scale: float, quantizers: Quantizers) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.act1 = quantizers.adaptive(num_features)
        self.conv1 = quantizers.conv(num_features, num_features, 3)
        self.act2 = quantizers.adaptive(num_features)
        self.conv2 = quantizers.conv(num_features, num_features, 3)
        self.act3 = quantizers.fixed()

    def forward(self, x: Tensor, context: PrecisionContext) -> tuple[Tensor, Tensor]:
        """Return the block's output and its feature for distillation, both (B,n,h,w)."""
        quantized = self.act1(x, context)
        hidden = F.relu(self.conv1(quantized), inplace=True)
        feature = self.conv2(self.act2(hidden, context))
        residual = feature if self.res_scale == 1 else feature * self.res_scale
        return values(self.act3(residual, context)) + values(quantized), feature


class EDSR(Backbone):
    """EDSR of any width and depth, for scale 2, 3 and 4.

    Args:
        scale: 2, 3 or 4.
        precision: what the quantized positions compute at.
        num_features: n, channels of the body (baseline 64).
        num_blocks: B, residual blocks (baseline 16).
        res_scale: factor on each block's residual (baseline 1).
    """

    name = "edsr"

    def __init__(
        self,
        scale: int,
        precision: Precision,
        num_features: int = 64,
        num_blocks: int = 16,
        res_scale: float = 1.0,
    ) -> None:
        options = {"num_features": num_features, "num_blocks": num_blocks, "res_scale": res_scale}
        super().__init__(scale, precision, options)
        n = num_features
        self.register_buffer("mean", pixel_mean(), persistent=False)
        self.head = nn.Conv2d(3, n, 3, padding=1)
        self.body = nn.ModuleList(ResidualBlock(n, res_scale, self.quantizers) for _ in range(num_blocks))
        self.body_end = nn.Conv2d(n, n, 3, padding=1)
        self.factors = {2: [2], 3: [3], 4: [2, 2]}[scale]
        self.upsample = nn.ModuleList(nn.Conv2d(n, n * r * r, 3, padding=1) for r in self.factors)
        self.tail = nn.Conv2d(n, 3, 3, padding=1)

        self.layers = self._describe_layers()
        # one pixel per 3x3 convolution; those of the tail lie on finer grids
        self.receptive_field = 2 + 2 * num_blocks + self._tail_reach()
        self.tail_border = scale - 1

    def _tail_reach(self) -> int:
        reach, grid = 0.0, 1
        for factor in [*self.factors, 1]:
            reach += 1 / grid
            grid *= factor
        return int(-(-reach // 1))

    def _describe_layers(self) -> list[QuantizedLayer]:
        layers = [QuantizedLayer("head", conv_macs(self.head), adaptive=False)]
        for index, block in enumerate(self.body):
            for name in ("conv1", "conv2"):
                macs = conv_macs(getattr(block, name))
                layers.append(QuantizedLayer(f"body.{index}.{name}", macs, adaptive=True))
        layers.append(QuantizedLayer("body_end", conv_macs(self.body_end), adaptive=False))
        grid = 1
        for index, (conv, factor) in enumerate(zip(self.upsample, self.factors, strict=True)):
            layers.append(QuantizedLayer(f"upsample.{index}", conv_macs(conv, grid), adaptive=False))
            grid *= factor**2
        layers.append(QuantizedLayer("tail", conv_macs(self.tail, grid), adaptive=False))
        return layers

    def run(self, x: Tensor, context: PrecisionContext, *, collapse_tail: bool) -> SROutput:
        """Run the graph; see `Backbone.run`."""
        head = self.head(x - self.mean).to(x.dtype)  # the trunk stays in the input's type under autocast
        hidden, features = head, []
        for block in self.body:
            hidden, feature = block(hidden, context)
            features.append(feature)
        feature = self.body_end(hidden) + head
        return SROutput(self.run_tail(feature, collapse_tail) + self.mean, feature, features)

    def run_tail(self, feature: Tensor, collapse_tail: bool) -> Tensor:
        """Return the enlarged image (B,3,h*scale,w*scale) about the mean, from (B,n,h,w)."""
        if collapse_tail:
            with torch.autocast(feature.device.type, enabled=False):
                weight, bias = collapse([*self.upsample, self.tail], self.factors)
            phases = F.conv2d(feature, weight, bias, padding=weight.shape[-1] // 2)
            return F.pixel_shuffle(phases, self.scale)
        for conv, factor in zip(self.upsample, self.factors, strict=True):
            feature = F.pixel_shuffle(conv(feature), factor)
        return self.tail(feature)
