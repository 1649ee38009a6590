"""A limit on the contrast of tiles, which keeps their activations within the quantizers' clip values.

One clip value serves all tiles. Where contrast is high, as on a facade in the sun, activations exceed it,
and clipping costs more than rounding. A network of convolutions and ReLUs is almost proportional: an image
of half the contrast gives a result of half the contrast. So such a tile enters the network with less, and
its result is stretched by as much.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LimitedTiles(NamedTuple):
    """Tiles whose contrast is within a limit.

    Attributes:
        pixels: (B,3,h,w) float32.
        mean: (B,3,1,1) mean colour of the tiles, before and after.
        factor: (B,1,1,1) how much contrast was reduced, 1 or more.
    """

    pixels: Tensor
    mean: Tensor
    factor: Tensor

    def restore(self, upscaled: Tensor) -> Tensor:
        """Give the tiles' results (B,3,H,W), on any device, the contrast that was taken from the tiles."""
        mean, factor = (numbers.to(upscaled.device) for numbers in (self.mean, self.factor))
        return torch.lerp(mean, upscaled.float(), factor)


def limit_contrast(tiles: Tensor, limit: float) -> LimitedTiles:
    """Bring tiles of high contrast down to a limit, around their mean colour.

    Contrast is the standard deviation of a tile's pixels, as the mean of the three channels. It is at most
    127.5, for a tile that is half black and half white.

    Args:
        tiles: (B,3,h,w), uint8 or float, in 0..255. Not modified.
        limit: highest contrast, > 0. Tiles below it keep their pixels.
    """
    pixels = tiles.float()
    variance, mean = torch.var_mean(pixels, dim=(2, 3), correction=0, keepdim=True)
    factor = (variance.sqrt().mean(dim=1, keepdim=True) / limit).clamp(min=1)
    limited = torch.where(factor > 1, torch.lerp(mean, pixels, 1 / factor), pixels)
    return LimitedTiles(limited, mean, factor)
