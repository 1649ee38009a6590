"""EDSR (Lim et al., CVPRW 2017): residual blocks without batch normalization."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.models.base import Backbone, SROutput, grid_reach, pixel_mean, upsample_factors
from cabm.models.tail import collapse
from cabm.quant import Precision, PrecisionContext, Quantizers, values

TAIL_REACH = 2
"""Low-resolution pixels that the tail reads on each side, at every scale."""


class ResidualBlock(nn.Module):
    """Two quantized convolutions around a ReLU; the second reads values that are never negative."""

    def __init__(self, num_features: int, res_scale: float, quantizers: Quantizers) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.act1 = quantizers.adaptive(num_features)
        self.conv1 = quantizers.conv(num_features, num_features, 3)
        self.act2 = quantizers.adaptive(num_features, non_negative=True)
        self.conv2 = quantizers.conv(num_features, num_features, 3)
        self.act3 = quantizers.fixed()
        self.skip = quantizers.skip()

    def forward(self, x: Tensor, context: PrecisionContext) -> tuple[Tensor, Tensor]:
        """Return the output and the feature for distillation, (B,n,h,w) each."""
        quantized = self.act1(x, context)
        hidden = F.relu(self.conv1(quantized), inplace=True)
        feature = self.conv2(self.act2(hidden, context))
        residual = feature if self.res_scale == 1 else feature * self.res_scale
        return values(self.act3(residual, context)) + self.skip(x, quantized, context), feature


class EDSR(Backbone):
    """EDSR of any width and depth.

    Args:
        scale: 2, 3 or 4.
        precision: how the quantized positions compute.
        num_features: n, channels of the body (baseline 64).
        num_blocks: number of residual blocks (baseline 16).
        res_scale: factor on the residual of each block (baseline 1).
        replicate_tail: pad the tail's input with its outermost pixels, instead of padding every convolution
            of the tail with zeros as the published EDSR does. The collapsed tail then equals the tail
            everywhere; without it, training on the collapsed tail leaves an untrained ring of pixels.
    """

    name = "edsr"

    def __init__(
        self,
        scale: int,
        precision: Precision,
        num_features: int = 64,
        num_blocks: int = 16,
        res_scale: float = 1.0,
        replicate_tail: bool = False,
    ) -> None:
        options = {"num_features": num_features, "num_blocks": num_blocks, "res_scale": res_scale}
        options |= {"replicate_tail": True} if replicate_tail else {}
        super().__init__(scale, precision, options)
        n = num_features
        quantizers = self.quantizers
        self.register_buffer("mean", pixel_mean(), persistent=False)
        self.head_act = quantizers.end()
        self.head = quantizers.conv(3, n, 3, reads="end")
        self.body = nn.ModuleList(ResidualBlock(n, res_scale, quantizers) for _ in range(num_blocks))
        self.body_end_act = quantizers.end()
        self.body_end = quantizers.conv(n, n, 3, reads="end")
        self.factors = upsample_factors(scale)
        self.upsample_act = nn.ModuleList(quantizers.end() for _ in self.factors)
        self.upsample = nn.ModuleList(quantizers.conv(n, n * r * r, 3, reads="end") for r in self.factors)
        self.tail_act = quantizers.end()
        self.tail = quantizers.conv(n, 3, 3, reads="end")

        self._add_layers()
        # one pixel per 3x3 convolution; those of the tail run on finer grids
        self.receptive_field = 2 + 2 * num_blocks + grid_reach([1] * (len(self.factors) + 1), self.factors)
        self.replicate_tail = replicate_tail
        self.tail_border = None if quantizers.quantizes_ends else 0 if replicate_tail else scale - 1

    def _add_layers(self) -> None:
        self.add_layer("head")
        for index in range(len(self.body)):
            self.add_layer(f"body.{index}.conv1", adaptive=True)
            self.add_layer(f"body.{index}.conv2", adaptive=True)
        self.add_layer("body_end")
        self.add_upsampling(self.factors)

    def run(self, x: Tensor, context: PrecisionContext, *, collapse_tail: bool) -> SROutput:
        """Run the network; see `Backbone.run`."""
        # under autocast, skip connections stay in the input's type
        head = self.head(self.head_act(x - self.mean, context)).to(x.dtype)
        hidden, features = head, []
        for block in self.body:
            hidden, feature = block(hidden, context)
            features.append(feature)
        feature = self.body_end(self.body_end_act(hidden, context)) + head
        return SROutput(self.run_tail(feature, context, collapse_tail) + self.mean, feature, features)

    def run_tail(self, feature: Tensor, context: PrecisionContext, collapse_tail: bool) -> Tensor:
        """Return the upscaled image less the mean, (B,3,h*scale,w*scale), for a feature (B,n,h,w)."""
        if collapse_tail and self.tail_border is not None:
            with torch.autocast(feature.device.type, enabled=False):
                weight, bias = collapse([*self.upsample, self.tail], self.factors)
            reach = weight.shape[-1] // 2
            if self.replicate_tail:
                feature, reach = F.pad(feature, [reach] * 4, mode="replicate"), 0
            return F.pixel_shuffle(F.conv2d(feature, weight, bias, padding=reach), self.scale)
        if self.replicate_tail:
            feature = F.pad(feature, [TAIL_REACH] * 4, mode="replicate")
        for act, conv, factor in zip(self.upsample_act, self.upsample, self.factors, strict=True):
            feature = F.pixel_shuffle(conv(act(feature, context)), factor)
        upscaled = self.tail(self.tail_act(feature, context))
        if self.replicate_tail:
            margin = TAIL_REACH * self.scale
            upscaled = upscaled[..., margin:-margin, margin:-margin]
        return upscaled
