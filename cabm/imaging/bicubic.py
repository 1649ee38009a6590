"""Bicubic upscaling of tensors: the kernel of `cabm.imaging.resize` in floating point, without rounding.

For parts of tiles that bypass the network, alpha channels, and bicubic as a baseline inside computations.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from cabm.imaging.resize import upscale_kernel
from cabm.machine.compiled import Loop, jit, none_if_numba_fails

REACH = 2
"""Input pixels around a tile that its bicubic upscaling reads."""


def upscale_bicubic_batch(x: Tensor, scale: int) -> Tensor:
    """Upscale a batch by a whole factor.

    The result may overshoot the range of ``x`` a little, as with any cubic. It differs from
    `cabm.imaging.resize.upscale_bicubic` by less than 1.5 levels because of the two roundings there, and by
    more at edges from black to white, where the overshoot of the first pass is clipped there.

    Args:
        x: (B, C, h, w), floating point, any range (0..255 here), any device.
        scale: at least 1.

    Returns:
        (B, C, h * scale, w * scale) of the type of ``x``.
    """
    if scale == 1:
        return x.clone()
    kernel = upscale_kernel(scale)
    weight = torch.tensor(kernel.numerators / kernel.denominator, dtype=x.dtype, device=x.device)
    batch, channels, height, width = x.shape
    rows, columns = (
        torch.from_numpy(np.pad(np.arange(size), 2, mode="symmetric")).to(x.device)
        for size in (height, width)
    )
    tall = conv2d(x.reshape(-1, 1, height, width)[:, :, rows], weight[:, None, :, None])
    tall = tall.transpose(1, 2).reshape(-1, 1, height * scale, width)
    full = conv2d(tall[..., columns], weight[:, None, None, :])
    return full.permute(0, 2, 3, 1).reshape(batch, channels, height * scale, width * scale)


def surround(image: Tensor) -> Tensor:
    """Pad (..., H, W) on the CPU with `REACH` mirrored pixels; edge pixels are repeated, as in MATLAB."""
    around = [(0, 0)] * (image.ndim - 2) + [(REACH, REACH)] * 2
    return torch.from_numpy(np.pad(image.numpy(), around, mode="symmetric"))


def write_upscaled(out: np.ndarray, tile: Tensor, scale: int) -> None:
    """Upscale a tile, round it and write it to ``out``, where 255 becomes the largest value of the type.

    Args:
        out: (C, h * scale, w * scale) uint8 or uint16, with channels last in memory.
        tile: (C, h + 4, w + 4) uint8, or float in 0..255, with `REACH` pixels around it; on the CPU.
        scale: at least 2.
    """
    peak = np.iinfo(out.dtype).max
    gain = peak / 255
    loop = _loop()
    if loop is None:
        upscaled = upscale_surrounded(tile[None].float(), scale)[0]
        # NumPy casts, because not every PyTorch version casts to uint16
        out[...] = upscaled.mul_(gain).round_().clamp_(0, peak).numpy()
        return
    rows = out.transpose(1, 2, 0)
    flat = rows.reshape(rows.shape[0], -1)
    assert np.shares_memory(flat, out), "channels are not last in memory"
    loop(tile.float().contiguous().numpy(), _factors(scale), np.float32(gain), np.float32(peak), flat)


def upscale_surrounded(tiles: Tensor, scale: int) -> Tensor:
    """Upscale tiles that come with their surroundings; the result is cut from the upscaled image.

    The PyTorch path of `write_upscaled`, with the same order of operations as its loop.

    Args:
        tiles: (B, C, h + 4, w + 4) float in any range: h x w pixels with `REACH` pixels around them.
        scale: at least 2.

    Returns:
        (B, C, h * scale, w * scale), not rounded or clipped.
    """
    weight = torch.from_numpy(_factors(scale)).to(tiles)
    taps = weight.shape[1]
    batch, channels, height, width = tiles.shape
    h, w = height - taps + 1, width - taps + 1
    # Along rows: a product with a band matrix, whose columns are ordered like output pixels.
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


@cache
def _factors(scale: int) -> np.ndarray:
    """(scale, 5) float32: for each phase of an output pixel, its taps -2 to 2."""
    kernel = upscale_kernel(scale)
    return (kernel.numerators / kernel.denominator).astype(np.float32)


@cache
@none_if_numba_fails
def _loop() -> Loop | None:
    """Return the compiled loop; None if numba fails."""
    # as in PyTorch, products are not rounded before they are added
    loop = jit(_upscale_loop, fastmath={"contract"})
    out = np.zeros((2, 2), np.uint8)
    loop(np.full((1, 5, 5), 300.6, np.float32), _factors(2), np.float32(0.5), np.float32(255), out)
    if (out != 150).any():
        raise ArithmeticError("the compiled bicubic loop computes wrong pixels")
    return loop


def _upscale_loop(tile, factors, gain, peak, out):
    """Write the upscaled tile, times gain, as whole numbers in 0..peak.

    Args:
        tile: (C, h + 4, w + 4) float32.
        factors: (scale, 5) float32, taps by phase.
        gain, peak: float32.
        out: (h * scale, w * scale * C) uint8 or uint16, channels last.
    """
    magic = np.float32(12582912.0)  # rounds: see `cabm.engine.elementwise_loops`
    zero = np.float32(0)  # starts the sums, so that the first of two products is rounded, as in PyTorch
    channels, height, width = tile.shape
    scale = len(factors)
    w = width - 4
    wide = np.empty((height, w * scale * channels), np.float32)
    part = np.empty(w, np.float32)
    for y in range(height):
        for channel in range(channels):
            row = tile[channel, y]
            for phase in range(scale):
                f0, f1, f2, f3, f4 = factors[phase]
                for x in range(w):
                    value = zero + row[x] * f0 + row[x + 1] * f1 + row[x + 2] * f2
                    part[x] = value + row[x + 3] * f3 + row[x + 4] * f4
                wide[y, phase * channels + channel :: scale * channels] = part
    for y in range(height - 4):
        r0, r1, r2, r3, r4 = wide[y], wide[y + 1], wide[y + 2], wide[y + 3], wide[y + 4]
        for phase in range(scale):
            f0, f1, f2, f3, f4 = factors[phase]
            target = out[y * scale + phase]
            for i in range(target.size):
                value = zero + r0[i] * f0 + r1[i] * f1 + r2[i] * f2 + r3[i] * f3 + r4[i] * f4
                value = min(max(value * gain, zero), peak)
                target[i] = np.int32((value + magic) - magic)
