"""Select one row of bits per edge score from what was observed."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from cabm.errors import InputError

SCORE_DECIMALS = 2
"""Scores are rounded to this many decimals before they become thresholds, as in the released tables."""

Strategy = Literal["lowest", "majority", "monotone"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


def select_rows(
    scores: ArrayLike,
    bits: ArrayLike,
    *,
    search_space: tuple[int, ...],
    strategy: Strategy,
    fab_cap: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Keep one row of bits per rounded score (CABM, section 3.2).

    - ``lowest``: the row with the fewest bits in total, as in the paper: fine-tuning recovers the quality.
      Ties go to the most frequent row, then to the first in lexicographic order.
    - ``majority``: the most frequent row. Ties go to the one with the fewest bits, then to the first.
    - ``monotone``: bits that never fall as the score rises, for every layer. This is the isotonic
      regression of the ``lowest`` rows, weighted by the number of tiles at each score, with the least sum
      of absolute differences. Ties go to fewer bits. All widths are from the search space, and a single
      outlier at a low score does not raise all later rows, as a running maximum would.

    Args:
        scores: (N,) edge scores.
        bits: (N, L) from the search space.
        search_space: bit-widths, ascending.
        strategy: see above.
        fab_cap: drop observed rows whose mean bits are not below this. With ``monotone``, the rows of the
            result stay below it too.

    Returns:
        thresholds (T,), ascending, and rows (T, L); equal neighbours are merged.

    Raises:
        InputError: nothing was observed, no row is below the cap, or the strategy is unknown.
        ValueError: scores or bits of a wrong shape or value.
    """
    scores, bits = _checked(scores, bits, search_space)
    if strategy not in STRATEGIES:
        raise InputError(f"strategy {strategy!r}: choose one of {', '.join(STRATEGIES)}, constant")
    if fab_cap is not None:
        scores, bits = _below_cap(scores, bits, fab_cap)
    thresholds, rows, weights = _one_row_per_score(scores, bits, strategy)
    if strategy == "monotone":
        lowest = rows[np.argmin(rows.sum(axis=1))]
        rows = _isotonic(rows, weights, search_space)
        if fab_cap is not None:
            # the fit is per layer, so its rows can reach the cap although no observed row did
            below = rows.mean(axis=1) < fab_cap
            thresholds, rows = thresholds[below], rows[below]
            if not len(rows):
                thresholds, rows = np.zeros(1), lowest[None]
    return _merge_equal_neighbours(thresholds, rows)


def _checked(
    scores: ArrayLike, bits: ArrayLike, search_space: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return rounded scores (N,) and bits (N, L) of at least one tile."""
    scores = np.round(np.asarray(scores, dtype=np.float64), SCORE_DECIMALS)
    bits = np.asarray(bits, dtype=np.int64)
    if scores.ndim != 1 or bits.ndim != 2 or len(bits) != len(scores):
        raise ValueError(f"scores {scores.shape} and bits {bits.shape} do not belong to the same N tiles")
    if not np.all(np.isfinite(scores) & (scores >= 0)):
        raise ValueError("edge scores must be finite and not negative")
    if not np.isin(bits, search_space).all():
        raise ValueError(f"observed bits outside the search space {list(search_space)}")
    if not len(bits):
        raise InputError("no tile was observed: there is nothing to build a table from")
    return scores, bits


def _below_cap(scores: np.ndarray, bits: np.ndarray, fab_cap: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the tiles whose mean bits are below the cap."""
    mean = bits.mean(axis=1)
    kept = mean < fab_cap
    if not kept.any():
        raise InputError(
            f"fab_cap {fab_cap:g}: no observed row of bits is below it, the lowest has "
            f"{mean.min():.2f} bits; raise the cap"
        )
    return scores[kept], bits[kept]


def _merge_equal_neighbours(thresholds: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop each threshold (T,) whose row (T, L) equals the one before."""
    changed = np.concatenate([[True], np.any(rows[1:] != rows[:-1], axis=1)])
    return thresholds[changed], rows[changed]


def _one_row_per_score(
    scores: np.ndarray, bits: np.ndarray, strategy: Strategy
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return thresholds (T,), rows (T, L) and the number of tiles at each score (T,)."""
    distinct, row_id = np.unique(bits, axis=0, return_inverse=True)
    thresholds, score_id, weights = np.unique(scores, return_inverse=True, return_counts=True)
    pairs, counts = np.unique(np.stack([score_id, row_id.reshape(-1)], axis=1), axis=0, return_counts=True)
    total = distinct.sum(axis=1)[pairs[:, 1]]
    ranks = (total, -counts) if strategy != "majority" else (-counts, total)
    order = np.lexsort((pairs[:, 1], ranks[1], ranks[0], pairs[:, 0]))  # the last key sorts first
    first = order[np.unique(pairs[order, 0], return_index=True)[1]]
    return thresholds, distinct[pairs[first, 1]], weights


def _isotonic(rows: np.ndarray, weights: np.ndarray, search_space: tuple[int, ...]) -> np.ndarray:
    """Return the non-decreasing rows (T, L) nearest to ``rows`` in weighted absolute difference.

    The problem separates into one per width: from which threshold on is a layer at least that wide? The
    best place of each such jump is found from cumulative sums. Among equally good places, the last one
    gives the fewest bits and never puts the jump to a wider width before that to a narrower one.
    """
    widths = np.asarray(search_space)
    levels = np.zeros(rows.shape, dtype=np.int64)
    thresholds = len(rows)
    for width in widths[1:]:
        wide = (rows >= width) * weights[:, None]
        zero = np.zeros((1, rows.shape[1]), dtype=wide.dtype)
        lost_below = np.concatenate([zero, np.cumsum(wide, axis=0)])
        narrow = np.concatenate([zero, np.cumsum((rows < width) * weights[:, None], axis=0)])
        cost = lost_below + narrow[-1] - narrow
        jump = thresholds - np.argmin(cost[::-1], axis=0)
        levels += np.arange(thresholds)[:, None] >= jump
    return widths[levels]
