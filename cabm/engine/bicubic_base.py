"""Bicubic interpolation of an image, to which IDN adds its residual.

It is PyTorch's ``interpolate`` with ``mode="bicubic"`` and ``align_corners=False``: the cubic kernel with
a = -0.75, without antialiasing; beyond the border lie the outermost pixels. Weights are rounded from
float64; PyTorch's, of float32 coordinates, change levels 0..255 by up to 0.003 at scale 3.

`cabm.imaging.bicubic` has the kernel of images, with a = -0.5, and rounds.

Rows are interpolated first, so that columns, which are more numbers, are sums of whole rows.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from cabm.machine.compiled import Loop, jit, none_if_numba_fails

SHARPNESS = -0.75
"""Slope of the cubic kernel at distance 1, called a."""

TAPS = 4
"""Pixels that a result depends on along an axis."""

REACH = 2
"""Pixels before or behind its own that a result may depend on, along an axis."""


def upscale(x: np.ndarray, scale: int) -> np.ndarray:
    """Return an image (h,w,C) float32 interpolated to (h*scale,w*scale,C).

    Args:
        x: the image, h and w at least 1.
        scale: at least 1.
    """
    loop, weights = compiled(), phase_weights(scale)
    if loop is None:
        return _along_rows(_along_rows(x, weights).swapaxes(0, 1), weights).swapaxes(0, 1).copy()
    height, width, channels = x.shape
    out = np.empty((height * scale, width * scale, channels), np.float32)
    loop(np.ascontiguousarray(x, np.float32), weights, out)
    return out


def phase_weights(scale: int) -> np.ndarray:
    """Return the kernel (scale, 2 * REACH + 1) float32: by phase, of the pixels around a result's own.

    One of the outermost is 0.
    """
    weights = np.zeros((scale, 2 * REACH + 1))
    for phase in range(scale):
        place = (phase + 0.5) / scale - 0.5  # from the centre of the pixel that the result lies in
        below = int(np.floor(place))
        first = below - 1 + REACH
        weights[phase, first : first + TAPS] = [_cubic(abs(place - below - tap)) for tap in range(-1, 3)]
    return weights.astype(np.float32)


def _cubic(distance: float) -> float:
    """Return the kernel at a distance of 0..2 pixels."""
    if distance <= 1:
        return ((SHARPNESS + 2) * distance - (SHARPNESS + 3)) * distance**2 + 1
    return SHARPNESS * (((distance - 5) * distance + 8) * distance - 4)


@cache
@none_if_numba_fails
def compiled() -> Loop | None:
    """Return the compiled loop, or None if numba fails; the first call compiles.

    Raises:
        ArithmeticError: it computes wrong results.
    """
    loop = jit(interpolation_loop())
    x = np.random.default_rng(0).random((5, 7, 3), np.float32)
    weights, out = phase_weights(3), np.empty((15, 21, 3), np.float32)
    wanted = _along_rows(_along_rows(x, weights).swapaxes(0, 1), weights).swapaxes(0, 1)
    loop(x, weights, out)
    if not np.abs(out - wanted).max() <= 1e-5:
        raise ArithmeticError("the compiled bicubic interpolation computes wrong results")
    return loop


def _along_rows(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return (h,w,C) float32 interpolated to (h,w*s,C)."""
    scale, taps = weights.shape
    height, width, channels = x.shape
    framed = np.pad(x, ((0, 0), (taps // 2, taps // 2), (0, 0)), mode="edge")
    out = np.zeros((height, width, scale, channels), np.float32)
    for tap in range(taps):
        out += framed[:, tap : tap + width, None] * weights[:, tap, None]
    return out.reshape(height, width * scale, channels)


def interpolation_loop() -> Loop:
    """Return the function to compile."""
    from numba.extending import register_jitable

    for called in (_frame, _weigh):
        register_jitable(called)

    def interpolate(x, weights, out):
        """Interpolate an image.

        Args:
            x: (h,w,C) float32.
            weights: from `phase_weights`.
            out: (h*s,w*s,C) float32 to write.
        """
        height, width, channels = x.shape
        scale, taps = weights.shape
        reach, count = taps // 2, out.shape[1] * channels
        results = out.reshape(-1)
        framed = np.empty((width + 2 * reach) * channels, np.float32)
        phase = np.empty(width * channels, np.float32)
        rows = np.empty(taps * count, np.float32)  # interpolated rows y - reach ... y + reach, in turns
        across, down = np.empty(taps, np.int64), np.empty(taps, np.int64)
        for tap in range(taps):
            across[tap] = tap * channels
        made = 0
        for y in range(height):
            while made < min(y + reach + 1, height):
                _frame(x[made], framed, reach)
                first = made % taps * count
                for p in range(scale):
                    _weigh(framed, across, weights[p], phase)
                    for i in range(width):
                        there = first + (i * scale + p) * channels
                        for c in range(channels):
                            rows[there + c] = phase[i * channels + c]
                made += 1
            for tap in range(taps):
                down[tap] = min(max(y + tap - reach, 0), height - 1) % taps * count
            for p in range(scale):
                there = (y * scale + p) * count
                _weigh(rows, down, weights[p], results[there : there + count])

    return interpolate


def _frame(row, framed, reach):
    """Write a row (w,C) to a flat array, with ``reach`` copies of the outermost pixels on each side."""
    width, channels = row.shape
    for i in range(-reach, width + reach):
        for c in range(channels):
            framed[(i + reach) * channels + c] = row[min(max(i, 0), width - 1), c]


def _weigh(source, starts, weights, out):
    """Write the weighted sums of five stretches of a flat array, given by their starts.

    They are slices, whose indices cannot be negative: else numba tests that, and LLVM uses no registers.
    """
    count = len(out)
    first, second = source[starts[0] : starts[0] + count], source[starts[1] : starts[1] + count]
    third, fourth = source[starts[2] : starts[2] + count], source[starts[3] : starts[3] + count]
    fifth = source[starts[4] : starts[4] + count]
    for i in range(count):
        total = weights[0] * first[i] + weights[1] * second[i] + weights[2] * third[i]
        out[i] = total + weights[3] * fourth[i] + weights[4] * fifth[i]
