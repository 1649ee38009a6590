"""Image quality and cost: PSNR, SSIM, FAB, BitOPs.

Quality is measured as super-resolution papers do: on 8-bit images, on Y of YCbCr, with the border
shaved, in float64. Images of any size are worked through in strips, so that an 8K image costs
megabytes and not gigabytes of intermediate values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike

from cabm.tiling import TilePlan

# MATLAB's rgb2ycbcr, divided by 256 as PSNR in the released code does (its SSIM divides by 255).
_Y_WEIGHTS = np.array([65.738, 129.057, 25.064]) / 256
_Y_OFFSET = 16.0
SSIM_WINDOW = 11
"""Side of SSIM's window in pixels; it must fit inside the shaved border."""

_SSIM_SIGMA = 1.5
_SSIM_C1, _SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_STRIP_PIXELS, _STRIP_ROWS = 1 << 16, 32  # intermediate values stay in the cache
_FLOAT_BITS = 32

Convention = Literal["patch", "image"]


class CostedLayer(Protocol):
    """What the cost of a layer is computed from."""

    @property
    def macs_per_pixel(self) -> float:
        """Multiply-accumulates per low-resolution pixel."""

    @property
    def adaptive(self) -> bool:
        """Whether its activation bits come from the search space."""

    @property
    def fixed_bits(self) -> int:
        """Activation bits where they do not: 8, or 32 for a layer that stays in float."""


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


def fab(bits: ArrayLike) -> float:
    """Feature average bits: the mean over tiles and adaptive positions that are computed.

    Args:
        bits: (N, L) or (L,); 0 is a position (a whole row: a tile) that is skipped. It is left out
            here, so that the figure compares with published ones. See :func:`skipped_share`.

    Returns:
        Mean bits; 0 if nothing is computed.
    """
    bits = np.asarray(bits)
    computed = bits[bits > 0]
    return float(computed.mean()) if computed.size else 0.0


def skipped_share(bits: ArrayLike, bypassed: ArrayLike | None = None) -> float:
    """Share (0..1) of the adaptive positions that are skipped in tiles that enter the network.

    Args:
        bits: (N, L); 0 is a position whose residual branch is skipped.
        bypassed: (N,) share 0..1 of each tile that does not enter the network; None: all of those whose
            bits are all 0.

    Returns:
        The share; 0 if no tile enters the network.
    """
    bits = np.atleast_2d(np.asarray(bits))
    entered = bits.any(axis=1) if bypassed is None else np.asarray(bypassed) < 1
    return float(np.mean(bits[entered] == 0)) if entered.any() else 0.0


def bitops(
    layers: Sequence[CostedLayer],
    bits: ArrayLike | None,
    tile_plan: TilePlan,
    *,
    convention: Convention,
    weight_bits: int | Literal["same"] = 8,
    fixed_bits: int | None = None,
    float_macs_per_pixel: float = 0.0,
    computed: ArrayLike | None = None,
) -> float:
    """Bit operations of one image: sum of MACs x weight bits x activation bits.

    What does not run is not counted: neither positions nor tiles of 0 bits. (Bicubic, which stands in for
    what is bypassed, is not counted; it is below 1e-3 of any of these networks.)

    Args:
        layers: all layers of the network in order. A float one counts 32 x 32 bits.
        bits: (N, L) activation bits of the L adaptive layers, for the plan's N tiles; (L,) for all tiles
            alike; None for the float network, where every layer counts 32 x 32 bits.
        tile_plan: the tiles of the image; one tile as large as the image for whole-image inference.
        convention: "patch" counts every tile in full, overlaps and all: the work that is done. "image"
            counts every pixel of the image once, with the bits of the tile that it is taken from.
        weight_bits: of quantized layers; "same" as their activations (the paper's; the release keeps 8).
        fixed_bits: in place of what the layers state.
        float_macs_per_pixel: of work in float beside the layers.
        computed: (N,) share 0..1 of each tile's pixels that the network computes; None: all, but for tiles
            whose bits are all 0, as in tables. A selector may skip every position of a tile, whose other
            layers run all the same.

    Raises:
        ValueError: the bits do not fit the layers and tiles, or an unknown convention.
    """
    macs = np.array([layer.macs_per_pixel for layer in layers], dtype=np.float64)
    adaptive = np.array([layer.adaptive for layer in layers], dtype=bool)
    num_tiles, width = tile_plan.num_tiles, int(adaptive.sum())
    if convention == "patch":
        areas = np.full(num_tiles, float(tile_plan.tile_height * tile_plan.tile_width))
    elif convention == "image":
        areas = tile_plan.owned_areas
    else:
        raise ValueError(f"convention {convention!r}: 'patch' or 'image'")
    if bits is None:
        return float(areas.sum() * (macs.sum() + float_macs_per_pixel) * _FLOAT_BITS**2)
    bits = np.asarray(bits)
    if bits.shape not in [(num_tiles, width), (width,)]:
        raise ValueError(f"bits {bits.shape} for {num_tiles} tiles of {width} adaptive layers")

    activations = np.empty((num_tiles, len(layers)))
    activations[:] = [fixed_bits or layer.fixed_bits for layer in layers]
    activations[:, adaptive] = bits
    weights = activations if weight_bits == "same" else np.full_like(activations, weight_bits)
    weights = np.where(activations == _FLOAT_BITS, _FLOAT_BITS, weights)
    if computed is None:
        computed = activations[:, adaptive].any(axis=1) if width else np.ones(num_tiles, dtype=bool)
    per_pixel = (activations * weights) @ macs + float_macs_per_pixel * _FLOAT_BITS**2
    return float(np.sum(per_pixel * areas * np.asarray(computed)))


def cadyq_operations(
    layers: Sequence[CostedLayer],
    mean_bits: float,
    *,
    scale: int,
    output_size: tuple[int, int] = (720, 1280),
) -> float:
    """Operations as CADyQ publishes them: OPs_float + (8 / 32) (FAB / 32) OPs_quantized.

    Args:
        layers: all layers of the network; those with 32 fixed bits are the float ones.
        mean_bits: FAB over the test set; of a model that skips positions, the mean with theirs as 0.
        scale: output pixels per input pixel.
        output_size: height and width of the output that is counted.

    Returns:
        Multiply-accumulates, those of quantized layers scaled by bits as above.
    """
    macs = {True: 0.0, False: 0.0}
    for layer in layers:
        macs[layer.adaptive or layer.fixed_bits < _FLOAT_BITS] += layer.macs_per_pixel
    pixels = output_size[0] * output_size[1] / scale**2
    return pixels * (macs[False] + (8 / _FLOAT_BITS) * (mean_bits / _FLOAT_BITS) * macs[True])


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
