"""Reduce images to any smaller size with libvips, as streams."""

from __future__ import annotations

from typing import Any

from cabm.imaging.pixels import has_alpha


def reduced(image: Any, height: int, width: int) -> Any:
    """Return a libvips image reduced to a size, with a Lanczos kernel of three lobes.

    The kernel works on the stored values (no conversion to linear light), in floating point with one
    rounding at the end. Colours are weighted by their alpha, so that those of transparent pixels do not
    bleed into visible ones. The border is repeated. Only the rows that the kernel needs are in memory.

    Args:
        image: 8- or 16-bit gray or RGB, with or without alpha (not premultiplied).
        height, width: of the result in pixels, at most those of the image.
    """
    if (image.height, image.width) == (height, width):
        return image
    peak = 255 if image.format == "uchar" else 65535
    alpha = has_alpha(image.bands)
    values = image.premultiply(max_alpha=peak) if alpha else image.cast("float")
    # a gap of 0 rules out the faster but less exact way by box averages
    small = values.resize(width / image.width, vscale=height / image.height, kernel="lanczos3", gap=0)
    if alpha:
        small = small.unpremultiply(max_alpha=peak)
    return small.rint().cast(image.format).copy(interpretation=image.interpretation)
