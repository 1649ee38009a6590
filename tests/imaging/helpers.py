"""Images, and MATLAB's bicubic resizing computed with fractions."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """Return a wave that never overshoots black or white."""
    y, x = np.mgrid[:height, :width]
    return np.rint(128 + 50 * np.sin(y / 3) * np.cos(x / 4)).astype(np.uint8)


def keys(x: Fraction) -> Fraction:
    x = abs(x)
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    if x <= 2:
        return Fraction(-1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2
    return Fraction(0)


def naive_pass(column: list[Fraction], length: int) -> list[Fraction]:
    """Resize one dimension as MATLAB documents imresize: 1-based, normalised weights, mirrored border."""
    size = len(column)
    factor = Fraction(length, size)
    stretch = min(factor, Fraction(1))
    width = Fraction(4) / stretch
    mirrored = [*range(size), *reversed(range(size))]
    out = []
    for x in range(1, length + 1):
        centre = x / factor + (1 - 1 / factor) / 2
        left = floor(centre - width / 2)
        taps = range(left, left + floor(width) + 2)
        weights = [stretch * keys(stretch * (centre - tap)) for tap in taps]
        total = sum(weights)
        out.append(
            sum(
                weight / total * column[mirrored[(tap - 1) % (2 * size)]]
                for tap, weight in zip(taps, weights, strict=True)
            )
        )
    return out


def naive(image: np.ndarray, height: int, width: int, *, rounded: bool = True) -> np.ndarray:
    """Resize rows, then columns. Both passes are rounded half up and clipped, or neither."""

    def finished(value: Fraction) -> Fraction:
        return Fraction(min(max(floor(value + Fraction(1, 2)), 0), 255)) if rounded else value

    columns = [[Fraction(int(value)) for value in column] for column in image.T]
    tall = [[finished(value) for value in naive_pass(column, height)] for column in columns]
    rows = [[finished(value) for value in naive_pass(list(row), width)] for row in zip(*tall, strict=True)]
    return np.array(rows, np.float64)
