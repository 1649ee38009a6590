"""Bicubic upscaling of one tile as a plain loop, which numba compiles: see `cabm.imaging.bicubic`."""

from __future__ import annotations

import numpy as np


def upscale(tile, factors, gain, peak, out):
    """Write the upscaled tile, times gain, as whole numbers in 0..peak.

    Args:
        tile: (C, h + 4, w + 4) float32.
        factors: (scale, 5) float32, of an output pixel's phase and its taps.
        gain, peak: float32.
        out: (h * scale, w * scale * C) bytes or 16-bit words, colours side by side.
    """
    magic = np.float32(12582912.0)  # rounds: see `cabm.engine.elementwise_loops`
    zero = np.float32(0)  # begins sums: of the first two products the first is rounded, as in PyTorch
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
