"""Convert pixels between image files (gray, alpha, 16 bits) and networks (RGB in 0..255)."""

from __future__ import annotations

import numpy as np

from cabm.imaging.bicubic import surround, write_upscaled

FILL_REACH = 8
"""Distance in low-resolution pixels over which colours spread into transparent areas."""
ALPHA_REACH = 3
"""Low-resolution rows above and below that upscaling rows of an alpha channel needs."""

LUMA_WEIGHTS = (9798, 19235, 3735)
"""ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B, with `LUMA_SHIFT` fractional bits, rounded as in OpenCV."""
LUMA_SHIFT = 15


def has_alpha(channels: int) -> bool:
    """Return whether the last of 1 to 4 channels is alpha."""
    return channels in (2, 4)


def network_input(rows: np.ndarray) -> np.ndarray:
    """Return rows of an image as the network's input.

    Transparent pixels take the colours around them. The colours that a file stores there are invisible and
    often black, and would bleed into visible edges.

    Args:
        rows: (n, W, C) uint8 or uint16; C = 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.

    Returns:
        (3, n, W): uint8, or float32 in 0..255 for 16-bit rows. Read only for gray rows.
    """
    colour = rows
    if has_alpha(rows.shape[2]):
        colour = fill_transparent(rows[..., :-1], rows[..., -1])
    planes = np.ascontiguousarray(colour.transpose(2, 0, 1))
    if planes.dtype == np.uint16:
        planes = planes.astype(np.float32) / np.float32(257)
    return np.broadcast_to(planes, (3, *planes.shape[1:]))


def fill_transparent(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Fill pixels with alpha 0 with the colours of the nearest visible pixels.

    Args:
        colour: (n, W, 1 or 3) uint8 or uint16.
        alpha: (n, W) of the same type.

    Returns:
        The same shape and type. Visible pixels are unchanged. Others get the mean of their visible
        neighbours, repeated up to a distance of `FILL_REACH` pixels, and the mean of all visible pixels
        beyond it.
    """
    known = alpha > 0
    if known.all():
        return colour
    values = np.where(known[..., None], colour, 0).astype(np.float32)
    if not known.any():
        return values.astype(colour.dtype)
    mean = values.sum(axis=(0, 1), dtype=np.float64) / np.count_nonzero(known)
    for _ in range(FILL_REACH):
        weight = _box_sum(known[..., None].astype(np.float32))
        total = _box_sum(values)
        new = ~known & (weight[..., 0] > 0)
        if not new.any():
            break
        values[new] = total[new] / weight[new]
        known |= new
    values[~known] = mean
    return np.rint(values).astype(colour.dtype)


def upscale_alpha(alpha: np.ndarray, scale: int) -> np.ndarray:
    """Upscale an alpha channel with bicubic: (n, W) uint8 or uint16 -> (n * scale, W * scale)."""
    if (alpha == alpha.flat[0]).all():
        return np.full((alpha.shape[0] * scale, alpha.shape[1] * scale), alpha.flat[0], alpha.dtype)
    upscaled = np.empty((1, alpha.shape[0] * scale, alpha.shape[1] * scale), alpha.dtype)
    write_upscaled(upscaled, surround(alpha[None]), scale, white=np.iinfo(alpha.dtype).max)
    return upscaled[0]


def joined_alpha(bicubic: np.ndarray, network: np.ndarray) -> np.ndarray:
    """Return the network's alpha, but bicubic's where that is 0 or full.

    There the network would leave a haze around what is visible, and holes in what is opaque.
    """
    return np.where((bicubic == 0) | (bicubic == np.iinfo(bicubic.dtype).max), bicubic, network)


def image_output(rgb: np.ndarray, channels: int, alpha: np.ndarray | None) -> np.ndarray:
    """Return rows of the network's output in the channels of the image.

    Args:
        rgb: (n, W, 3) uint8 or uint16.
        channels: of the image, 1 to 4.
        alpha: (n, W) upscaled alpha channel; None if the image has none.

    Returns:
        (n, W, channels) of the type of ``rgb``. Gray is the luma of ``rgb``.
    """
    colour = rgb
    if channels < 3:
        half = np.uint32(1 << (LUMA_SHIFT - 1))
        total = (rgb * np.array(LUMA_WEIGHTS, np.uint32)).sum(axis=2, dtype=np.uint32, keepdims=True) + half
        colour = (total >> LUMA_SHIFT).astype(rgb.dtype)
    return colour if alpha is None else np.concatenate([colour, alpha[..., None]], axis=2)


def as_rgba(rows: np.ndarray) -> np.ndarray:
    """Return (n, W, 1 to 4) uint8 in four channels; alpha is 255 where the rows have none."""
    alpha = rows[..., -1:] if has_alpha(rows.shape[2]) else np.full((*rows.shape[:2], 1), 255, np.uint8)
    colour = rows[..., :-1] if has_alpha(rows.shape[2]) else rows
    return np.concatenate([np.broadcast_to(colour, (*rows.shape[:2], 3)), alpha], axis=2)


def _box_sum(values: np.ndarray) -> np.ndarray:
    """Sum over 3 x 3 neighbourhoods of (n, W, C), with zeros outside."""
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)))
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
