"""Bicubic enlargement of tiles that do not enter the network: the kernel of `cabm.resize`, batched."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.resize import enlarge_kernel
from cabm.tiling import TilePlan

REACH = 2
"""Input pixels around a tile that its bicubic enlargement reads."""


def enlarge_surrounded(tiles: Tensor, scale: int) -> Tensor:
    """Enlarge tiles that bring their surroundings: the result is that of the whole image, cut.

    Args:
        tiles: (B,C,h+4,w+4) float in any range: tiles of h x w pixels with `REACH` pixels around them.
        scale: at least 2.

    Returns:
        (B,C,h*scale,w*scale), not rounded; it may leave the range a little, as any cubic does.
    """
    kernel = enlarge_kernel(scale)
    weight = torch.tensor(kernel.numerators / kernel.denominator, dtype=tiles.dtype, device=tiles.device)
    taps = weight.shape[1]
    batch, channels, height, width = tiles.shape
    h, w = height - taps + 1, width - taps + 1
    # along rows a product with a band matrix, which puts the phases side by side as they stay
    band = weight.new_zeros(w, scale, width)
    band.as_strided((w, scale, taps), (scale * width + 1, width, 1)).copy_(weight)
    wide = (tiles.reshape(-1, width) @ band.view(-1, width).T).view(-1, height, scale * w)
    enlarged = wide.new_empty(len(wide), h, scale, scale * w)
    for phase, factors in enumerate(weight.tolist()):
        rows = enlarged[:, :, phase]
        torch.mul(wide[:, :h], factors[0], out=rows)
        for tap, factor in enumerate(factors[1:], start=1):
            rows.add_(wide[:, tap : tap + h], alpha=factor)
    return enlarged.view(batch, channels, scale * h, scale * w)


def surround(image: Tensor) -> Tensor:
    """Mirror the border of (..., H, W) for `REACH` pixels, edge pixels repeated (as MATLAB does)."""
    for axis in (-2, -1):
        index = np.pad(np.arange(image.shape[axis]), REACH, mode="symmetric")
        image = image.index_select(axis, torch.from_numpy(index).to(image.device))
    return image


def surrounded_tile(surrounded: Tensor, tile_plan: TilePlan, number: int) -> Tensor:
    """Cut one tile with its surroundings, (C,h+4,w+4), out of a surrounded image.

    Args:
        surrounded: (C,H+4,W+4): the image of the plan with `REACH` pixels around it.
        tile_plan: where the tiles lie.
        number: of the tile.
    """
    y0, x0, y1, x1 = tile_plan.boxes[number].tolist()
    tile = surrounded[:, y0 : y1 + 2 * REACH, x0 : x1 + 2 * REACH]
    missing = (y1 + 2 * REACH - y0 - tile.shape[1], x1 + 2 * REACH - x0 - tile.shape[2])
    # an image smaller than the network's size multiple: what lies beyond it is cut off again
    return F.pad(tile, (0, missing[1], 0, missing[0])) if any(missing) else tile
