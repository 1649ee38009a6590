"""SRResNet (Ledig et al., CVPR 2017): residual blocks with batch normalization and one shared PReLU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cabm.models.base import Backbone, SROutput, grid_reach, upsample_factors
from cabm.quant import Precision, PrecisionContext, Quantizers


class ResidualBlock(nn.Module):
    """Two quantized convolutions, each followed by batch normalization."""

    def __init__(self, num_features: int, release_graph: bool, quantizers: Quantizers) -> None:
        super().__init__()
        self.release_graph = release_graph
        self.act1 = quantizers.adaptive(num_features)
        self.conv1 = quantizers.conv(num_features, num_features, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(num_features)
        self.act2 = quantizers.adaptive(num_features)
        self.conv2 = quantizers.conv(num_features, num_features, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(num_features)
        self.skip = quantizers.skip()

    def forward(self, x: Tensor, context: PrecisionContext, prelu: nn.PReLU) -> tuple[Tensor, Tensor]:
        """Return the output and the feature for distillation, (B,n,h,w) each."""
        quantized = self.act1(x, context)
        hidden = prelu(self.bn1(self.conv1(x if self.release_graph else quantized)))
        feature = self.bn2(self.conv2(self.act2(hidden, context)))
        return feature + self.skip(x, quantized, context), feature


class SRResNet(Backbone):
    """SRResNet of any width and depth.

    Args:
        scale: 2, 3 or 4.
        precision: how the quantized positions compute.
        num_features: n, channels of the body (64).
        num_blocks: number of residual blocks (16).
        release_graph: compute the first convolution of each block on its unquantized input. The released
            CADyQ and CABM models do this, although they count the input as quantized. For imported
            checkpoints only; by default the convolution reads the quantized input.
    """

    name = "srresnet"

    def __init__(
        self,
        scale: int,
        precision: Precision,
        num_features: int = 64,
        num_blocks: int = 16,
        release_graph: bool = False,
    ) -> None:
        options = {"num_features": num_features, "num_blocks": num_blocks, "release_graph": release_graph}
        super().__init__(scale, precision, options)
        n = num_features
        quantizers = self.quantizers
        self.head_act = quantizers.end()
        self.head = quantizers.conv(3, n, 9, bias=False, reads="end")
        self.prelu = nn.PReLU()  # of the head and all blocks
        self.body = nn.ModuleList(ResidualBlock(n, release_graph, quantizers) for _ in range(num_blocks))
        self.body_end_act = quantizers.end()
        self.body_end = quantizers.conv(n, n, 3, bias=False, reads="end")
        self.body_end_bn = nn.BatchNorm2d(n)
        self.factors = upsample_factors(scale)
        self.upsample_act = nn.ModuleList(quantizers.end() for _ in self.factors)
        self.upsample = nn.ModuleList(
            quantizers.conv(n, n * r * r, 3, bias=False, reads="end") for r in self.factors
        )
        self.upsample_prelu = nn.ModuleList(nn.PReLU() for _ in self.factors)
        self.tail_act = quantizers.end()
        self.tail = quantizers.conv(n, 3, 9, bias=False, reads="end")

        self._add_layers()
        self.receptive_field = 5 + 2 * num_blocks + grid_reach([1] * len(self.factors) + [4], self.factors)

    def _add_layers(self) -> None:
        self.add_layer("head")
        for index in range(len(self.body)):
            self.add_layer(f"body.{index}.conv1", adaptive=True)
            self.add_layer(f"body.{index}.conv2", adaptive=True)
        self.add_layer("body_end")
        self.add_upsampling(self.factors)

    def run(self, x: Tensor, context: PrecisionContext, *, collapse_tail: bool) -> SROutput:
        """Run the network; see `Backbone.run`. There is no mean shift. The tail cannot collapse."""
        # under autocast, skip connections stay in the input's type
        head = self.prelu(self.head(self.head_act(x, context))).to(x.dtype)
        hidden, features = head, []
        for block in self.body:
            hidden, feature = block(hidden, context, self.prelu)
            features.append(feature)
        feature = self.body_end_bn(self.body_end(self.body_end_act(hidden, context))) + head
        upscaled = feature
        steps = zip(self.upsample_act, self.upsample, self.upsample_prelu, self.factors, strict=True)
        for act, conv, prelu, factor in steps:
            upscaled = prelu(F.pixel_shuffle(conv(act(upscaled, context)), factor))
        return SROutput(self.tail(self.tail_act(upscaled, context)).to(x.dtype), feature, features)
