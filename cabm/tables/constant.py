"""One row of bits for all tiles: the least quantization noise for a budget of bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cabm.errors import InputError


def least_noise_row(noise: np.ndarray, widths: Sequence[int], fab_cap: float) -> np.ndarray:
    """Return the row with the least sum of noise whose mean bits are at most ``fab_cap``.

    The noise of several layers is taken as the sum of the noise of each. The row is then the exact solution
    of a knapsack problem, found layer by layer for every sum of bits. Among rows of equal noise, the one
    with the fewest bits is returned.

    Args:
        noise: (L, K) noise in the output when only this layer has this width; see
            `cabm.evaluation.sensitivity.layer_noise`.
        widths: K bit-widths, ascending.
        fab_cap: highest mean bits of the row.

    Returns:
        (L,) int64 bits.

    Raises:
        InputError: even the narrowest width is above ``fab_cap``.
    """
    if fab_cap < widths[0]:
        raise InputError(
            f"fab_cap {fab_cap:g}: the narrowest width of the search space is {widths[0]} bits;"
            " raise the cap"
        )
    budget = int(fab_cap * len(noise) + 1e-9)
    least = np.full(budget + 1, np.inf)  # by the sum of bits of the layers so far
    least[0] = 0.0
    choices = []
    for of_layer in noise:
        options = np.full((len(widths), budget + 1), np.inf)
        for option, width, added in zip(options, widths, of_layer, strict=True):
            option[width:] = least[: max(0, budget + 1 - width)] + added
        choices.append(options.argmin(axis=0))
        least = options.min(axis=0)
    left, row = int(least.argmin()), []
    for choice in reversed(choices):
        row.append(widths[choice[left]])
        left -= row[-1]
    return np.array(row[::-1], dtype=np.int64)
