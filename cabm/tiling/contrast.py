"""A limit on the contrast of tiles, which keeps their activations within the quantizers' clip values.

One clip value serves all tiles. Where contrast is high, as on a facade in the sun, activations exceed it,
and clipping costs more than rounding. A network of convolutions and ReLUs is almost proportional: an image
of half the contrast gives a result of half the contrast. So such a tile enters the network with less, and
its result is stretched by as much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# Training limits tensors, with gradients; upscaling limits arrays. What is used here, both have.
Array = TypeVar("Array", np.ndarray, "Tensor")


class LimitedTiles(NamedTuple, Generic[Array]):
    """Tiles whose contrast is within a limit.

    Attributes:
        pixels: (B,3,h,w) float32.
        mean: (B,3,1,1) mean colour of the tiles, before and after.
        factor: (B,1,1,1) how much contrast was reduced, 1 or more.
    """

    pixels: Array
    mean: Array
    factor: Array

    def restore(self, upscaled: Array) -> Array:
        """Give the tiles' results (B,3,H,W) float32 the contrast that was taken from the tiles."""
        return upscaled + (upscaled - self.mean) * (self.factor - 1)


def limit_contrast(tiles: Array, limit: float) -> LimitedTiles[Array]:
    """Bring tiles of high contrast down to a limit, around their mean colour.

    Contrast is the standard deviation of a tile's pixels, as the mean of the three channels. It is at most
    127.5, for a tile that is half black and half white.

    Args:
        tiles: (B,3,h,w) float32 in 0..255. Not modified.
        limit: highest contrast, > 0. Tiles below it keep their pixels.
    """
    mean = tiles.mean(axis=(2, 3), keepdims=True)
    off = tiles - mean
    deviation = (off * off).mean(axis=(2, 3), keepdims=True) ** 0.5
    factor = (deviation.mean(axis=1, keepdims=True) / limit).clip(min=1)
    # pixels of a factor of 1 stay exactly what they are
    return LimitedTiles(tiles - off * (1 - 1 / factor), mean, factor)
