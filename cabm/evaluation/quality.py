"""PSNR and SSIM as super-resolution papers measure them.

On 8-bit images, on Y of YCbCr, without the border, in float64. Images are processed in strips, so that an
8K image takes megabytes of intermediate values, not gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from cabm.data.store import SSIM_WINDOW

# MATLAB's rgb2ycbcr, divided by 256 as in the PSNR of the released code (its SSIM divides by 255).
_Y_WEIGHTS = np.array([65.738, 129.057, 25.064]) / 256
_Y_OFFSET = 16.0
_STRIP_PIXELS, _STRIP_ROWS = 1 << 16, 32  # intermediate values stay in the cache


def psnr_y(sr: np.ndarray, hr: np.ndarray, shave: int) -> float:
    """Peak signal-to-noise ratio on Y, in dB; infinite for equal images.

    Args:
        sr, hr: (H, W, 3) or (H, W) uint8; gray counts as R = G = B.
        shave: border to leave out, in output pixels (the scale, by the benchmark protocol).

    Raises:
        ValueError: shapes or types differ, or nothing is left inside the border.
    """
    sr, hr = _shaved(sr, hr, shave, at_least=1)
    total = 0.0
    for rows in _strips(sr.shape):
        error = _y(sr[rows]) - _y(hr[rows])
        total += float(np.vdot(error, error))
    return math.inf if not total else 10 * math.log10(255**2 * sr.shape[0] * sr.shape[1] / total)


def ssim_y(sr: np.ndarray, hr: np.ndarray, shave: int) -> float:
    """Mean structural similarity on Y (Wang et al. 2004), in -1..1.

    Gaussian window of 11 x 11 with sigma 1.5, only at positions where it fits; K = 0.01 and 0.03, range
    255. Arguments and errors as for :func:`psnr_y`; the window must fit inside the border.
    """
    from skimage.metrics import structural_similarity  # figures of crops do without it

    sr, hr = _shaved(sr, hr, shave, at_least=SSIM_WINDOW)
    reach = SSIM_WINDOW // 2
    total, count = 0.0, 0
    for rows in _strips(sr.shape, overlap=2 * reach):
        _, similarity = structural_similarity(
            _y(sr[rows]),
            _y(hr[rows]),
            data_range=255,
            gaussian_weights=True,  # truncated at 3.5 sigma, which makes a window of 11
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        inside = similarity[reach:-reach, reach:-reach]
        total += float(inside.sum())
        count += inside.size
    return total / count


def _shaved(sr: np.ndarray, hr: np.ndarray, shave: int, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    """Check two images and cut off their borders."""
    if sr.shape != hr.shape or sr.dtype != np.uint8 or hr.dtype != np.uint8:
        raise ValueError(f"cannot compare {sr.dtype} {sr.shape} with {hr.dtype} {hr.shape}")
    if sr.ndim not in (2, 3) or (sr.ndim == 3 and sr.shape[2] != 3):
        raise ValueError(f"expected (H, W, 3) or (H, W), got {sr.shape}")
    if shave < 0 or min(sr.shape[:2]) - 2 * shave < at_least:
        raise ValueError(f"image of {sr.shape[:2]} is too small for a border of {shave}")
    inside = slice(shave, sr.shape[0] - shave), slice(shave, sr.shape[1] - shave)
    return sr[inside], hr[inside]


def _strips(shape: tuple[int, ...], overlap: int = 0) -> Iterator[slice]:
    """Yield strips of about 2^16 pixels as rows, each with the first ``overlap`` rows of the next."""
    height, width = shape[:2]
    step = max(_STRIP_PIXELS // width, _STRIP_ROWS)
    for start in range(0, height - overlap, step):
        yield slice(start, min(start + step + overlap, height))


def _y(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) or (H, W) uint8 -> (H, W) float64 in 16..236, not rounded."""
    if image.ndim == 2:
        return image * _Y_WEIGHTS.sum() + _Y_OFFSET
    return image @ _Y_WEIGHTS + _Y_OFFSET
