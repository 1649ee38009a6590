"""IDN (Hui et al., CVPR 2018): information distillation blocks, transposed convolution, bicubic skip."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.errors import InputError
from cabm.models.base import Backbone, SROutput, upsample_factors
from cabm.quant import Precision, PrecisionContext, Quantizers

GROUPS = 4
KERNEL = 17  # of the transposed convolution
SLOPE = 0.05  # of every LeakyReLU


def leaky(x: Tensor) -> Tensor:
    """LeakyReLU with IDN's slope, in place."""
    return F.leaky_relu(x, SLOPE, inplace=True)


class DistillationBlock(nn.Module):
    """Six adaptive convolutions; d channels of the third skip the last three."""

    def __init__(self, num_features: int, num_distilled: int, quantizers: Quantizers) -> None:
        super().__init__()
        n, d = num_features, num_distilled
        self.num_kept = n - d
        self.act1 = quantizers.adaptive(n)
        self.conv1 = quantizers.conv(n, n - d, 3)
        self.act2 = quantizers.adaptive(n - d)
        self.conv2 = quantizers.conv(n - d, n - 2 * d, 3, groups=GROUPS)
        self.act3 = quantizers.adaptive(n - 2 * d)
        self.conv3 = quantizers.conv(n - 2 * d, n, 3)
        self.act4 = quantizers.adaptive(n - d)
        self.conv4 = quantizers.conv(n - d, n, 3)
        self.act5 = quantizers.adaptive(n)
        self.conv5 = quantizers.conv(n, n - d, 3, groups=GROUPS)
        self.act6 = quantizers.adaptive(n - d)
        self.conv6 = quantizers.conv(n - d, n + d, 3)
        self.compression_act = quantizers.end()
        self.compression = quantizers.end_conv(n + d, n, 1)

    def forward(self, x: Tensor, context: PrecisionContext) -> tuple[Tensor, Tensor]:
        """Return the block's output (B,n,h,w) and its feature for distillation (B,n+d,h,w)."""
        hidden = leaky(self.conv1(self.act1(x, context)))
        hidden = leaky(self.conv2(self.act2(hidden, context)))
        hidden = leaky(self.conv3(self.act3(hidden, context)))
        distilled = hidden[:, self.num_kept :]
        hidden = leaky(self.conv4(self.act4(hidden[:, : self.num_kept], context)))
        hidden = leaky(self.conv5(self.act5(hidden, context)))
        feature = leaky(self.conv6(self.act6(hidden, context)))
        joined = feature + torch.cat([x, distilled], dim=1)
        return self.compression(self.compression_act(joined, context)), feature


class IDN(Backbone):
    """IDN for scale 2, 3 and 4.

    Args:
        scale: 2, 3 or 4.
        precision: what the quantized positions compute at.
        num_features: n, channels of the body (64).
        num_blocks: distillation blocks (4).
        num_distilled: d, channels that each block passes on half way (16).

    Raises:
        InputError: another scale, or n - d or n - 2d cannot be divided into the 4 groups of the paper.
    """

    name = "idn"

    def __init__(
        self,
        scale: int,
        precision: Precision,
        num_features: int = 64,
        num_blocks: int = 4,
        num_distilled: int = 16,
    ) -> None:
        options = {"num_features": num_features, "num_blocks": num_blocks, "num_distilled": num_distilled}
        super().__init__(scale, precision, options)
        upsample_factors(scale)  # only the check: one layer does it
        n, d = num_features, num_distilled
        if n <= 2 * d or (n - d) % GROUPS or d % GROUPS:
            raise InputError(
                f"model: idn with num_features={n} and num_distilled={d} has no {GROUPS} equal groups; "
                f"make both multiples of {GROUPS}, and num_features more than twice num_distilled"
            )
        quantizers = self.quantizers
        self.entry1_act = quantizers.fixed()
        self.entry1 = quantizers.fixed_conv(3, n, 3)
        self.entry2_act = quantizers.fixed()
        self.entry2 = quantizers.fixed_conv(n, n, 3)
        self.body = nn.ModuleList(DistillationBlock(n, d, quantizers) for _ in range(num_blocks))
        self.tail_act = quantizers.end()
        self.tail = quantizers.end_deconv(n, 3, KERNEL, stride=scale, padding=KERNEL // 2)

        self._add_layers()
        # an output pixel of phase r reads the inputs at (r +- 8) / scale around its own
        self.receptive_field = 2 + 6 * num_blocks + (scale - 1 + KERNEL // 2) // scale

    def _add_layers(self) -> None:
        self.add_layer("entry1")
        self.add_layer("entry2")
        for index in range(len(self.body)):
            for number in range(1, 7):
                self.add_layer(f"body.{index}.conv{number}", adaptive=True)
            self.add_layer(f"body.{index}.compression")
        self.add_layer("tail")

    def run(self, x: Tensor, context: PrecisionContext, *, collapse_tail: bool) -> SROutput:
        """Run the graph; see `Backbone.run`. There is no mean shift; the tail is one layer already."""
        bicubic = F.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False)
        hidden = leaky(self.entry1(self.entry1_act(x, context)))
        # the trunk stays in the input's type under autocast
        hidden = leaky(self.entry2(self.entry2_act(hidden, context))).to(x.dtype)
        features = []
        for block in self.body:
            hidden, feature = block(hidden, context)
            features.append(feature)
        size = list(bicubic.shape[2:])
        return SROutput(
            bicubic + self.tail(self.tail_act(hidden, context), output_size=size), hidden, features
        )
