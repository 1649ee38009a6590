"""What compiled code must compute, in plain NumPy: small images only, to try it at a start."""

from __future__ import annotations

import numpy as np


def convolve(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Convolve (h,w,I) by (O,I,k,k), k odd, with zeros beyond the border, to (h,w,O) float64.

    One small product of matrices per tap: a single large one could start the threads of NumPy's library.
    """
    height, width, inputs = x.shape
    reach = weight.shape[-1] // 2
    framed = np.pad(x.astype(np.float64), [(reach, reach), (reach, reach), (0, 0)])
    taps = np.ascontiguousarray(weight.transpose(2, 3, 1, 0), np.float64)  # (k,k,I,O)
    sums = np.zeros((height * width, len(weight)))
    for row, column in np.ndindex(*taps.shape[:2]):
        pixels = framed[row : row + height, column : column + width].reshape(-1, inputs)
        sums += pixels @ taps[row, column]
    return sums.reshape(height, width, -1)


def pixel_shuffle(x: np.ndarray, factor: int) -> np.ndarray:
    """Return (h r,w r,C) for (h,w,C r^2), as `torch.nn.functional.pixel_shuffle` orders channels."""
    height, width, channels = x.shape
    cells = x.reshape(height, width, channels // factor**2, factor, factor)
    return cells.transpose(0, 3, 1, 4, 2).reshape(height * factor, width * factor, -1)


def leaky(x: np.ndarray, slope: float) -> np.ndarray:
    """Multiply negative numbers by ``slope``."""
    return np.where(x < 0, x * slope, x)
