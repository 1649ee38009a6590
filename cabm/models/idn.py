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
SLOPE = 0.05  # of all LeakyReLUs


def leaky(x: Tensor) -> Tensor:
    """Apply LeakyReLU with IDN's slope, in place."""
    return F.leaky_relu(x, SLOPE, inplace=True)


class DistillationBlock(nn.Module):
    """Six adaptive convolutions. d output channels of the third skip the last three (distillation)."""

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
        self.compression = quantizers.conv(n + d, n, 1, reads="end")

    def forward(self, x: Tensor, context: PrecisionContext) -> tuple[Tensor, Tensor]:
        """Return the output (B,n,h,w) and the feature for distillation (B,n+d,h,w)."""
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
    """IDN of any width and depth.

    Args:
        scale: 2, 3 or 4.
        precision: how the quantized positions compute.
        num_features: n, channels of the body (64).
        num_blocks: number of distillation blocks (4).
        num_distilled: d, channels that skip the second half of each block (16).

    Raises:
        InputError: another scale; or n - d or n - 2d is not a multiple of 4, the paper's number of groups.
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
        upsample_factors(scale)  # checks the scale; one layer upscales by any factor
        n, d = num_features, num_distilled
        if n <= 2 * d or (n - d) % GROUPS or d % GROUPS:
            raise InputError(
                f"model: idn with num_features={n} and num_distilled={d} has no {GROUPS} equal groups; "
                f"make both multiples of {GROUPS}, and num_features more than twice num_distilled"
            )
        quantizers = self.quantizers
        self.entry1_act = quantizers.fixed(non_negative=True)  # pixels
        self.entry1 = quantizers.conv(3, n, 3, reads="fixed")
        self.entry2_act = quantizers.fixed()
        self.entry2 = quantizers.conv(n, n, 3, reads="fixed")
        self.body = nn.ModuleList(DistillationBlock(n, d, quantizers) for _ in range(num_blocks))
        self.tail_act = quantizers.end()
        self.tail = quantizers.conv(n, 3, KERNEL, reads="end", transposed=True, stride=scale)

        self._add_layers()
        # output pixel r of a low-resolution pixel reads inputs up to (r + 8) / scale away
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
        """Run the network; see `Backbone.run`. There is no mean shift. The tail is one layer anyway."""
        bicubic = F.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False)
        hidden = leaky(self.entry1(self.entry1_act(x, context)))
        # under autocast, skip connections stay in the input's type
        hidden = leaky(self.entry2(self.entry2_act(hidden, context))).to(x.dtype)
        features = []
        for block in self.body:
            hidden, feature = block(hidden, context)
            features.append(feature)
        size = list(bicubic.shape[2:])
        return SROutput(
            bicubic + self.tail(self.tail_act(hidden, context), output_size=size), hidden, features
        )
