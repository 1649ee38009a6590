"""Tables that a learned one is held against: its own rows at other scores, and one row for all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cabm.tables.table import EdgeToBitTable

CONTROLS = ("cabm_shuffled", "cabm_constant")
"""Names of the methods that use them."""


def shuffled(table: EdgeToBitTable, *, seed: int) -> EdgeToBitTable:
    """Return the table with its computed rows in random order: the same rows, at the wrong scores.

    Bypassed scores stay bypassed, so that the same tiles are computed.

    Args:
        table: a learned table.
        seed: of the order.
    """
    computed = np.flatnonzero(table.rows.any(axis=1))
    rows = table.rows.copy()
    rows[computed] = rows[np.random.Generator(np.random.Philox(seed)).permutation(computed)]
    return replace(table, rows=rows)


def constant(table: EdgeToBitTable, scores: np.ndarray) -> EdgeToBitTable:
    """Return the table with one row for all computed scores: content does not count.

    It is the table's own row whose mean bits come closest to what the table gives tiles of these scores.

    Args:
        table: a learned table.
        scores: (N,) edge scores of tiles, such as the validation tiles it was built from.

    Raises:
        ValueError: no tile of these is computed.
    """
    computed = np.flatnonzero(table.rows.any(axis=1))
    bits = table.lookup(scores)
    if not bits.any():
        raise ValueError("no tile of these scores is computed")
    aim = bits[bits.any(axis=1)].mean()  # skipped layers count 0 bits, here as in the rows
    means = table.rows[computed].mean(axis=1)
    rows = table.rows.copy()
    rows[computed] = rows[computed[np.abs(means - aim).argmin()]]
    return replace(table, rows=rows)
