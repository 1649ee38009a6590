"""Elementwise steps between convolutions, as plain loops that numba compiles into one vectorised pass.

Written for numba, but never compiled at import: see `cabm.engine.elementwise`. All arithmetic is
float32, every operation rounded by itself, as in the simulation.

Adding and subtracting 1.5 * 2^23 rounds a float32 of magnitude below 2^22 to the nearest whole number, half
to even.
"""

from __future__ import annotations

import numpy as np


def encode(x, slope, inverse, low, high, zero, out):
    """Write the codes of x, negative values times slope, to out.

    Args:
        x, out: flat float32 and byte arrays of one length.
        slope, inverse: float32.
        low, high: float32 smallest and largest code.
        zero: int32 byte of code 0.
    """
    magic = np.float32(12582912.0)
    for i in range(x.size):
        value = x[i]
        if value < np.float32(0.0):
            value = value * slope
        code = min(max(value * inverse, low), high)
        out[i] = np.int32((code + magic) - magic) + zero


def add_encode(a, a_scale, b, b_scale, b_zero, inverse, low, high, zero, out):
    """Write the codes of a * a_scale + (b - b_zero) * b_scale to out.

    Args:
        a, b, out: flat arrays of one length: int8 or float32, uint8, bytes.
        a_scale, b_scale, inverse, low, high: float32.
        b_zero, zero: int32.
    """
    magic = np.float32(12582912.0)
    for i in range(a.size):
        value = np.float32(a[i]) * a_scale + np.float32(np.int32(b[i]) - b_zero) * b_scale
        code = min(max(value * inverse, low), high)
        out[i] = np.int32((code + magic) - magic) + zero


def add_decode(a, a_scale, b, b_scale, b_zero, out):
    """Write a * a_scale + (b - b_zero) * b_scale to the flat float32 array out."""
    for i in range(a.size):
        out[i] = np.float32(a[i]) * a_scale + np.float32(np.int32(b[i]) - b_zero) * b_scale
