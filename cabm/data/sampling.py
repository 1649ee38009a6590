"""Informative patch positions: training on patches that bilinear upscaling gets most wrong.

SamplingAug (BMVC 2021, arXiv 2111.15185) ranks every patch position of an image by the PSNR of the
bilinearly upscaled low-resolution patch. Training draws from the hardest portion.

Patches start at whole low-resolution pixels, so the squared error is first summed over each such pixel, and
the windows are summed on an array that is smaller by scale^2. For a whole factor, bilinear weights are
fractions over 2 * scale, so all sums are exact integers, and equal errors keep their order in the image.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Variant = Literal["greedy", "nms", "darts"]

BAND_PIXELS = 1 << 15
"""Approximate low-resolution pixels whose errors are computed at a time, to stay in the cache."""

CHUNK = 1 << 12
"""Candidates that are checked for overlap at a time."""


def rank_positions(
    hr: np.ndarray,
    lr: np.ndarray,
    scale: int,
    *,
    lr_patch: int,
    portion: float,
    variant: Variant = "greedy",
    seed: int = 0,
) -> np.ndarray:
    """Return the patch positions of an image that bilinear upscaling gets most wrong.

    The candidates are the hardest ``portion`` of all positions, at least one. ``greedy`` keeps all of them.
    ``nms`` visits them from the hardest and drops those that overlap a kept one; ``darts`` visits them in
    random order. Both keep far fewer positions, but no candidate could be added without overlap. (The
    paper's code fixes the number of sparse positions instead, and also throws darts at easy ones.)

    Args:
        hr: (h * scale, w * scale, 3) uint8, 0..255.
        lr: (h, w, 3) uint8, 0..255.
        scale: 1 to 8.
        lr_patch: side of a patch in low-resolution pixels.
        portion: share of the positions that are candidates, above 0 up to 1.
        variant: ``greedy``, ``nms`` or ``darts``.
        seed: for the order of ``darts``.

    Returns:
        (N, 2) int64: top and left of patches in low-resolution pixels, the hardest first (``darts``: in
        random order); no rows if the image is smaller than a patch.
    """
    assert 0 < portion <= 1 and lr_patch >= 1 and seed >= 0
    if min(lr.shape[:2]) < lr_patch:
        return np.empty((0, 2), np.int64)
    errors = patch_errors(hr, lr, scale, lr_patch)
    candidates = _hardest(errors.ravel(), max(1, round(portion * errors.size)))
    if variant == "darts":
        # NumPy guarantees the stream of raw words; see PatchSampler.
        raw = np.random.Philox(key=seed).random_raw(len(candidates))
        candidates = candidates[np.argsort(raw, kind="stable")]
    if variant != "greedy":
        candidates = _without_overlap(candidates, errors.shape, lr_patch)
    return np.stack(np.divmod(candidates, errors.shape[1]), axis=1)


def patch_errors(hr: np.ndarray, lr: np.ndarray, scale: int, lr_patch: int) -> np.ndarray:
    """Sum the squared error of bilinear upscaling over every patch position.

    Args:
        hr: (h * scale, w * scale, 3) uint8, 0..255.
        lr: (h, w, 3) uint8, 0..255, at least a patch high and wide.
        scale: 1 to 8.
        lr_patch: side p of a patch in low-resolution pixels.

    Returns:
        (h - p + 1, w - p + 1) int64, over R, G and B, in levels^2 / (2 scale)^4. A larger error
        means a lower PSNR.
    """
    return _window_sums(_window_sums(pixel_errors(hr, lr, scale), lr_patch).T, lr_patch).T


def pixel_errors(hr: np.ndarray, lr: np.ndarray, scale: int) -> np.ndarray:
    """Sum the squared error of bilinear upscaling over every low-resolution pixel.

    Pixel centres are aligned as in `cabm.imaging.resize`; border pixels are repeated.

    Args:
        hr: (h * scale, w * scale, 3) uint8, 0..255.
        lr: (h, w, 3) uint8, 0..255.
        scale: 1 to 8.

    Returns:
        (h, w) int64, over R, G, B and scale^2 pixels, in levels^2 / (2 scale)^4.
    """
    height, width = lr.shape[:2]
    assert 1 <= scale <= 8 and hr.dtype == lr.dtype == np.uint8 and lr.shape == (height, width, 3)
    assert hr.shape == (height * scale, width * scale, 3)
    unit = (2 * scale) ** 2
    # The square of the largest difference must fit; sums of squares use 64 bits.
    dtype = np.int32 if (255 * unit) ** 2 < 2**31 else np.int64
    total = np.zeros((height, width), np.int64)
    band = max(1, BAND_PIXELS // width)
    for first in range(0, height, band):
        last = min(first + band, height)
        rows = np.clip(np.arange(first - 1, last + 1), 0, height - 1)
        low = np.pad(lr[rows].transpose(2, 0, 1), ((0, 0), (0, 0), (1, 1)), mode="edge").astype(dtype)
        high = hr[first * scale : last * scale].reshape(last - first, scale, width, scale, 3)
        high = np.ascontiguousarray(high.transpose(4, 1, 3, 0, 2)).astype(dtype)
        high *= unit
        sums = total[first:last]
        for channel in range(3):
            for y in range(scale):
                tall = _between(low[channel], y, scale)
                for x in range(scale):
                    error = high[channel, y, x]
                    error -= _between(tall.T, x, scale).T
                    error *= error
                    sums += error
    return total


def _between(rows: np.ndarray, phase: int, scale: int) -> np.ndarray:
    """Interpolate (N + 2, W) rows at one of ``scale`` phases of the inner N, times 2 * scale."""
    offset = 2 * phase + 1 - scale
    neighbour = rows[2:] if offset > 0 else rows[:-2]
    return rows[1:-1] * rows.dtype.type(2 * scale - abs(offset)) + neighbour * rows.dtype.type(abs(offset))


def _window_sums(x: np.ndarray, size: int) -> np.ndarray:
    """Sum all windows of ``size`` rows of (N, W), as differences of running sums."""
    running = np.cumsum(x, axis=0)
    sums = running[size - 1 :].copy()
    sums[1:] -= running[:-size]
    return sums


def _hardest(errors: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the ``count`` largest errors, the largest first, equal ones in order."""
    least = np.partition(errors, errors.size - count)[errors.size - count]
    found = np.flatnonzero(errors >= least)
    return found[np.argsort(-errors[found], kind="stable")][:count]


def _without_overlap(candidates: np.ndarray, shape: tuple[int, int], patch: int) -> np.ndarray:
    """Return the candidates (flat indices of positions) that overlap no earlier one that is kept."""
    blocked = np.zeros(shape, bool)
    kept = []
    for first in range(0, len(candidates), CHUNK):
        chunk = candidates[first : first + CHUNK]
        for position in chunk[~blocked.ravel()[chunk]].tolist():
            top, left = divmod(position, shape[1])
            if not blocked[top, left]:
                kept.append(position)
                above, before = max(0, top - patch + 1), max(0, left - patch + 1)
                blocked[above : top + patch, before : left + patch] = True
    return np.array(kept, np.int64)
