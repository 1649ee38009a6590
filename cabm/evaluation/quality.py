"""PSNR and SSIM as super-resolution papers measure them.

On 8-bit images, on Y of YCbCr, with the border shaved, in float64. Images of any size are worked through
in strips, so that an 8K image costs megabytes of intermediate values, not gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

# MATLAB's rgb2ycbcr, divided by 256 as PSNR in the released code does (its SSIM divides by 255).
_Y_WEIGHTS = np.array([65.738, 129.057, 25.064]) / 256


_Y_OFFSET = 16.0


SSIM_WINDOW = 11
"""Side of SSIM's window in pixels; it must fit inside the shaved border."""


_SSIM_SIGMA = 1.5
_SSIM_C1, _SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_STRIP_PIXELS, _STRIP_ROWS = 1 << 16, 32  # intermediate values stay in the cache


def psnr_y(sr: np.ndarray, hr: np.ndarray, shave: int) -> float:
    """Peak signal-to-noise ratio on Y, in dB; infinite for equal images.

    Args:
        sr, hr: (H, W, 3) or (H, W) uint8; gray counts as R = G = B.
        shave: border left out, in output pixels (the scale, by the benchmark protocol).

    Raises:
        ValueError: shapes or types differ, or nothing is left inside the border.
    """
    return _psnr(sr, hr, shave, luma=True)


def psnr_rgb(sr: np.ndarray, hr: np.ndarray, shave: int) -> float:
    """Peak signal-to-noise ratio over all channels, in dB (DIV2K validation: shave scale + 6).

    Arguments and errors as for :func:`psnr_y`.
    """
    return _psnr(sr, hr, shave, luma=False)


def ssim_y(sr: np.ndarray, hr: np.ndarray, shave: int) -> float:
    """Mean structural similarity on Y (Wang et al. 2004), in -1..1.

    Gaussian window of 11 x 11 with sigma 1.5, positions where it lies wholly inside, K = 0.01 and 0.03,
    range 255. Arguments and errors as for :func:`psnr_y`; the window must fit inside the border.
    """
    sr, hr = _shaved(sr, hr, shave, at_least=SSIM_WINDOW)
    total, count = 0.0, 0
    for rows in _strips(sr.shape, overlap=SSIM_WINDOW - 1):
        similarity = _ssim_map(_y(sr[rows]), _y(hr[rows]))
        total += float(similarity.sum())
        count += similarity.numel()
    return total / count


def _psnr(sr: np.ndarray, hr: np.ndarray, shave: int, *, luma: bool) -> float:
    sr, hr = _shaved(sr, hr, shave, at_least=1)
    total = 0.0
    for rows in _strips(sr.shape):
        if luma:
            error = _y(sr[rows]) - _y(hr[rows])
        else:
            error = sr[rows].astype(np.float64) - hr[rows]
        total += float(np.vdot(error, error))
    values = sr.shape[0] * sr.shape[1] if luma else sr.size
    return math.inf if not total else 10 * math.log10(255**2 * values / total)


def _shaved(sr: np.ndarray, hr: np.ndarray, shave: int, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    if sr.shape != hr.shape or sr.dtype != np.uint8 or hr.dtype != np.uint8:
        raise ValueError(f"cannot compare {sr.dtype} {sr.shape} with {hr.dtype} {hr.shape}")
    if sr.ndim not in (2, 3) or (sr.ndim == 3 and sr.shape[2] != 3):
        raise ValueError(f"expected (H, W, 3) or (H, W), got {sr.shape}")
    if shave < 0 or min(sr.shape[:2]) - 2 * shave < at_least:
        raise ValueError(f"image {sr.shape[:2]} with a border of {shave} shaved is too small")
    inside = slice(shave, sr.shape[0] - shave), slice(shave, sr.shape[1] - shave)
    return sr[inside], hr[inside]


def _strips(shape: tuple[int, ...], overlap: int = 0) -> Iterator[slice]:
    """Rows in strips of about 2^16 pixels, each with ``overlap`` rows of the next."""
    height, width = shape[:2]
    step = max(_STRIP_PIXELS // width, _STRIP_ROWS)
    for start in range(0, height - overlap, step):
        yield slice(start, min(start + step + overlap, height))


def _y(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) or (H, W) uint8 -> (H, W) float64 in 16..236, not rounded."""
    if image.ndim == 2:
        return image * _Y_WEIGHTS.sum() + _Y_OFFSET
    return image @ _Y_WEIGHTS + _Y_OFFSET


def _ssim_map(x: np.ndarray, y: np.ndarray) -> torch.Tensor:
    """(H, W) float64 each -> (H - 10, W - 10)."""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    window /= window.sum()
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    maps = torch.stack([a, b, a * a, b * b, a * b])
    for axis in (1, 2):
        length = maps.shape[axis] - SSIM_WINDOW + 1
        filtered = torch.zeros_like(maps.narrow(axis, 0, length))
        for offset, weight in enumerate(window.tolist()):
            filtered.add_(maps.narrow(axis, offset, length), alpha=weight)
        maps = filtered
    mean_a, mean_b, square_a, square_b, product = maps
    covariance = product - mean_a * mean_b
    variances = square_a - mean_a**2 + square_b - mean_b**2
    return ((2 * mean_a * mean_b + _SSIM_C1) * (2 * covariance + _SSIM_C2)) / (
        (mean_a**2 + mean_b**2 + _SSIM_C1) * (variances + _SSIM_C2)
    )
