"""Bicubic upscaling of tiles that bypass the network: the kernel of `cabm.imaging.resize`, batched."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from cabm.imaging import bicubic_loop
from cabm.imaging.resize import upscale_kernel
from cabm.machine.compiled import Loop, jit, where_it_works

REACH = 2
"""Input pixels around a tile that its bicubic upscaling reads."""


def upscale_surrounded(tiles: Tensor, scale: int) -> Tensor:
    """Upscale tiles that bring their surroundings: the result is that of the whole image, cut.

    Args:
        tiles: (B,C,h+4,w+4) float in any range: tiles of h x w pixels with `REACH` pixels around them.
        scale: at least 2.

    Returns:
        (B,C,h*scale,w*scale), not rounded; it may leave the range a little, as any cubic does.
    """
    weight = torch.from_numpy(_factors(scale)).to(tiles)
    taps = weight.shape[1]
    batch, channels, height, width = tiles.shape
    h, w = height - taps + 1, width - taps + 1
    # along rows a product with a band matrix, which puts the phases side by side as they stay
    band = weight.new_zeros(w, scale, width)
    band.as_strided((w, scale, taps), (scale * width + 1, width, 1)).copy_(weight)
    wide = (tiles.reshape(-1, width) @ band.view(-1, width).T).view(-1, height, scale * w)
    upscaled = wide.new_empty(len(wide), h, scale, scale * w)
    for phase, factors in enumerate(weight.tolist()):
        rows = upscaled[:, :, phase]
        torch.mul(wide[:, :h], factors[0], out=rows)
        for tap, factor in enumerate(factors[1:], start=1):
            rows.add_(wide[:, tap : tap + h], alpha=factor)
    return upscaled.view(batch, channels, scale * h, scale * w)


def lay_upscaled(out: np.ndarray, tile: Tensor, scale: int) -> None:
    """Overwrite an upscaled tile by the bicubic one, rounded; 255 becomes the largest number of its type.

    Args:
        out: (C,h*scale,w*scale) uint8 or uint16, colours side by side in memory.
        tile: (C,h+4,w+4) uint8, or float in 0..255, with `REACH` pixels around it; on the CPU.
        scale: at least 2.
    """
    peak = np.iinfo(out.dtype).max
    gain = peak / 255
    loop = _loop()
    if loop is None:
        upscaled = upscale_surrounded(tile[None].float(), scale)[0]
        # NumPy's cast, as not every PyTorch casts to uint16
        out[...] = upscaled.mul_(gain).round_().clamp_(0, peak).numpy()
        return
    rows = out.transpose(1, 2, 0)
    flat = rows.reshape(rows.shape[0], -1)
    assert np.shares_memory(flat, out), "colours do not lie side by side"
    loop(tile.float().contiguous().numpy(), _factors(scale), np.float32(gain), np.float32(peak), flat)


def surround(image: Tensor) -> Tensor:
    """Mirror `REACH` pixels at the border of (..., H, W), on the CPU; edge pixels twice, as MATLAB does."""
    around = [(0, 0)] * (image.ndim - 2) + [(REACH, REACH)] * 2
    return torch.from_numpy(np.pad(image.numpy(), around, mode="symmetric"))


@cache
def _factors(scale: int) -> np.ndarray:
    """(scale,5) float32: of an output pixel's phase, its taps -2 to 2."""
    kernel = upscale_kernel(scale)
    return (kernel.numerators / kernel.denominator).astype(np.float32)


@cache
@where_it_works
def _loop() -> Loop | None:
    """Return the compiled loop, None without a numba that works."""
    # as PyTorch does it, a product is not rounded before it is added
    loop = jit(bicubic_loop.upscale, fastmath={"contract"})
    out = np.zeros((2, 2), np.uint8)
    loop(np.full((1, 5, 5), 300.6, np.float32), _factors(2), np.float32(0.5), np.float32(255), out)
    return loop if (out == 150).all() else None
