"""Bicubic upscaling of arrays: the kernel of `cabm.imaging.resize` in floating point.

For parts of tiles that bypass the network, and for alpha channels.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from cabm.imaging.resize import upscale_kernel
from cabm.machine.compiled import Loop, jit, none_if_numba_fails

REACH = 2
"""Input pixels around a tile that its bicubic upscaling reads."""


def surround(image: np.ndarray) -> np.ndarray:
    """Pad (..., H, W) with `REACH` mirrored pixels; edge pixels are repeated, as in MATLAB."""
    around = [(0, 0)] * (image.ndim - 2) + [(REACH, REACH)] * 2
    return np.pad(image, around, mode="symmetric")


def write_upscaled(out: np.ndarray, tile: np.ndarray, scale: int, *, white: int = 255) -> None:
    """Upscale a tile, round it and write it to ``out``, where ``white`` becomes the type's largest value.

    The result differs from `cabm.imaging.resize.upscale_bicubic` by less than 1.5 levels because of the two
    roundings there, and by more at edges from black to white, where the overshoot of the first pass is
    clipped there.

    Args:
        out: (C, h * scale, w * scale) uint8 or uint16, with channels last in memory.
        tile: (C, h + 4, w + 4) integers or floats in 0..``white``, with `REACH` pixels around it.
        scale: at least 2.
        white: largest value of the tile.
    """
    peak = np.iinfo(out.dtype).max
    gain = np.float32(peak / white)
    values = np.ascontiguousarray(tile, np.float32)
    loop = _loop()
    if loop is None:
        out[...] = np.rint(upscale_surrounded(values, scale) * gain).clip(0, peak)
        return
    rows = out.transpose(1, 2, 0)
    flat = rows.reshape(rows.shape[0], -1)
    assert np.shares_memory(flat, out), "channels are not last in memory"
    loop(values, _factors(scale), gain, np.float32(peak), flat)


def upscale_surrounded(tile: np.ndarray, scale: int) -> np.ndarray:
    """Upscale a tile that comes with its surroundings; the result is cut from the upscaled image.

    The NumPy path of `write_upscaled`, to the same bit.

    Args:
        tile: (C, h + 4, w + 4) float32 in any range: h x w pixels with `REACH` pixels around them.
        scale: at least 2.

    Returns:
        (C, h * scale, w * scale) float32, not rounded or clipped.
    """
    return _upscaled_rows(_upscaled_rows(tile, scale).swapaxes(1, 2), scale).swapaxes(1, 2)


def _upscaled_rows(tile: np.ndarray, scale: int) -> np.ndarray:
    """Upscale along the last axis: (C, h, w + 4) -> (C, h, w * scale) float32."""
    factors = _factors(scale)
    width = tile.shape[2] - factors.shape[1] + 1
    out = np.empty((*tile.shape[:2], width, scale), np.float32)
    for phase in range(scale):
        total = np.zeros((*tile.shape[:2], width), np.float32)
        for tap, factor in enumerate(factors[phase]):
            # in float64, where a product is exact: as in the loop, it is not rounded before it is added
            exact = np.multiply(tile[..., tap : tap + width], factor, dtype=np.float64)
            total = (total + exact).astype(np.float32)
        out[..., phase] = total
    return out.reshape(*tile.shape[:2], width * scale)


@cache
def _factors(scale: int) -> np.ndarray:
    """(scale, 5) float32: for each phase of an output pixel, its taps -2 to 2."""
    kernel = upscale_kernel(scale)
    return (kernel.numerators / kernel.denominator).astype(np.float32)


@cache
@none_if_numba_fails
def _loop() -> Loop | None:
    """Return the compiled loop; None if numba fails."""
    # a product is not rounded before it is added, as in PyTorch
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
    zero = np.float32(0)  # starts the sums, so that the first of two products is rounded
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
