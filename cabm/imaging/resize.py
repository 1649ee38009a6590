"""Bicubic resizing of uint8 images by whole factors, bit for bit like MATLAB's ``imresize``.

Super-resolution benchmarks are made with MATLAB. Its rules: Keys' cubic with a = -0.5 (Keys 1981),
stretched by the factor when the image shrinks (antialiasing); a border that mirrors the image and repeats
its edge pixel; a vertical pass, rounded half up to uint8, then a horizontal pass, rounded again.

For a whole factor all weights are fractions with a common denominator, so both passes use integers. The
result does not depend on the order of a sum, and ties are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cabm.errors import InputError

BAND_BYTES = 1 << 20
"""Approximate output bytes that are computed at a time, to stay in the cache."""


@dataclass(frozen=True)
class Kernel:
    """Integer weights: ``output[i, phase] = sum_t numerators[phase, t] * x[start + i * stride + t]``.

    The sum is then divided by ``denominator``.
    """

    numerators: np.ndarray
    denominator: int
    start: int
    stride: int


def _keys_cubic(a: np.ndarray, b: int) -> np.ndarray:
    """Keys' cubic (a = -0.5) at ``a / b``, as integers over ``2 * b**3``."""
    a = np.abs(a)
    near = 3 * a**3 - 5 * a**2 * b + 2 * b**3
    far = -(a**3) + 5 * a**2 * b - 8 * a * b**2 + 4 * b**3
    return np.where(a <= b, near, np.where(a <= 2 * b, far, 0))


def shrink_kernel(scale: int) -> Kernel:
    """Return the weights for shrinking by ``scale``: one phase of 4 * scale taps."""
    taps = np.arange(4 * scale, dtype=np.int64)
    start = -(3 * scale // 2)
    # Output 0 is centred on (scale - 1) / 2. Distances are integers over 2 * scale.
    numerators = _keys_cubic(scale - 1 - 2 * (start + taps), 2 * scale)[None]
    denominator = 2 * (2 * scale) ** 3 * scale
    assert numerators.sum() == denominator
    return Kernel(numerators, denominator, start, scale)


def upscale_kernel(scale: int) -> Kernel:
    """Return the weights for upscaling by ``scale``: one row per output phase, 5 taps from -2 to 2."""
    phase = np.arange(scale, dtype=np.int64)[:, None]
    tap = np.arange(-2, 3, dtype=np.int64)[None]
    numerators = _keys_cubic(2 * phase + 1 - scale - 2 * scale * tap, 2 * scale)
    denominator = 2 * (2 * scale) ** 3
    assert (numerators.sum(axis=1) == denominator).all()
    return Kernel(numerators, denominator, -2, 1)


def crop_to_multiple(image: np.ndarray, multiple: int) -> np.ndarray:
    """Crop the bottom and right of an image so that both sides are multiples of ``multiple``.

    Args:
        image: (H, W) or (H, W, C).
        multiple: at least 1.

    Returns:
        A view of the image.

    Raises:
        InputError: a side is shorter than ``multiple``.
    """
    height, width = image.shape[:2]
    if min(height, width) < multiple:
        raise InputError(
            f"an image of {width}x{height} pixels is smaller than the scale {multiple}; use larger images"
        )
    return image[: height - height % multiple, : width - width % multiple]


def downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """Shrink a uint8 image by a whole factor as ``imresize(image, 1 / scale)`` does.

    Args:
        image: (H, W) or (H, W, C) uint8, 0..255; H and W multiples of ``scale``.
        scale: at least 1.

    Returns:
        (H / scale, W / scale[, C]) uint8.

    Raises:
        InputError: the image is not uint8, or its sides are not multiples of ``scale``.
    """
    _check(image, scale)
    if image.shape[0] % scale or image.shape[1] % scale:
        raise InputError(
            f"an image of {image.shape[1]}x{image.shape[0]} pixels cannot be shrunk by {scale}:"
            " crop it to a multiple first"
        )
    return _resize(image, shrink_kernel(scale)) if scale > 1 else image.copy()


def upscale_bicubic(image: np.ndarray, scale: int) -> np.ndarray:
    """Upscale a uint8 image by a whole factor as ``imresize(image, scale)`` does.

    Args:
        image: (H, W) or (H, W, C) uint8, 0..255.
        scale: at least 1.

    Returns:
        (H * scale, W * scale[, C]) uint8.

    Raises:
        InputError: the image is not uint8.
    """
    _check(image, scale)
    return _resize(image, upscale_kernel(scale)) if scale > 1 else image.copy()


def _check(image: np.ndarray, scale: int) -> None:
    if scale < 1:
        raise InputError(f"scale {scale} is not possible; give 1 or more")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise InputError(
            f"an array of shape {image.shape} and type {image.dtype} is not an image;"
            " give (H, W) or (H, W, C) of uint8"
        )


def _resize(image: np.ndarray, kernel: Kernel) -> np.ndarray:
    # Channels go first: the inner loops then run along image rows, not over three channels.
    planes = np.atleast_3d(image).transpose(2, 0, 1)
    channels, height, width = planes.shape
    phases = len(kernel.numerators)
    rows, columns = (size // kernel.stride * phases for size in (height, width))
    row_index, column_index = (_mirrored(size, kernel) for size in (height, width))
    taps = kernel.numerators.shape[1]

    out = np.empty((rows, columns, channels), np.uint8)
    groups = rows // phases
    band = max(1, BAND_BYTES // (max(width, columns) * phases))
    for plane in range(channels):
        for first in range(0, groups, band):
            last = min(first + band, groups)
            source = row_index[first * kernel.stride : (last - 1) * kernel.stride + taps]
            tall = _filter_rows(planes[plane][source], kernel)
            # The horizontal pass is the vertical one of the transposed band.
            wide = _filter_rows(np.ascontiguousarray(tall.T)[column_index], kernel)
            out[first * phases : last * phases, :, plane] = wide.T
    return out[..., 0] if image.ndim == 2 else out


def _mirrored(size: int, kernel: Kernel) -> np.ndarray:
    """Source index of every row that the kernel reads, from its first to its last tap."""
    last = kernel.start + (size // kernel.stride - 1) * kernel.stride + kernel.numerators.shape[1]
    return np.pad(np.arange(size), (-kernel.start, max(0, last - size)), mode="symmetric")


def _filter_rows(rows: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Apply a kernel along axis 0 of (N, W) uint8; returns (outputs * phases, W) uint8."""
    phases, taps = kernel.numerators.shape
    outputs = (len(rows) - taps) // kernel.stride + 1
    peak = 255 * int(np.abs(kernel.numerators).sum(axis=1).max()) + kernel.denominator
    dtype = np.int32 if peak < 2**31 else np.int64
    out = np.empty((outputs, phases, rows.shape[1]), np.uint8)
    product = np.empty((outputs, rows.shape[1]), dtype)
    for phase in range(phases):
        # Half the denominator first: the floor division below then rounds half up.
        total = np.full(product.shape, kernel.denominator // 2, dtype)
        for tap, weight in enumerate(kernel.numerators[phase].tolist()):
            if weight:
                stop = tap + (outputs - 1) * kernel.stride + 1
                np.multiply(rows[tap : stop : kernel.stride], weight, out=product, dtype=dtype)
                total += product
        np.clip(total, 0, 255 * kernel.denominator, out=total)
        out[:, phase] = total // kernel.denominator
    return out.reshape(outputs * phases, -1)
