"""The elementwise operations between convolutions as plain loops, each compiled by numba to one pass.

`cabm.engine.elementwise` compiles them. All arithmetic is float32, and each operation is rounded by itself,
as in the simulation.

Adding and subtracting 1.5 * 2^23 rounds a float32 of magnitude below 2^22 to the nearest whole number, ties
to even.
"""

from __future__ import annotations

import numpy as np


def encode(x, slope, inverse, low, high, zero, out):
    """Write the codes of x to out; negative values are first multiplied by slope.

    Args:
        x, out: flat float32 and byte arrays of one length.
        slope, inverse: float32.
        low, high: float32, the smallest and the largest code.
        zero: int32, the byte of code 0.
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
        a, b, out: flat arrays of one length, of int8 or float32, uint8, and bytes.
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
