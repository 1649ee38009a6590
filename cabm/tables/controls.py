"""Tables that a learned one is held against: its own rows at other scores, and one row for all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cabm.tables.table import EdgeToBitTable

CONTROLS = ("cabm_shuffled", "cabm_constant")
"""Names of the methods that use them."""


def shuffled(table: EdgeToBitTable, *, seed: int) -> EdgeToBitTable:
    """Return the table with its rows in random order: the same rows, at the wrong scores.

    Args:
        table: a learned table.
        seed: of the order.
    """
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(table.rows))
    return replace(table, rows=table.rows[order])


def constant(table: EdgeToBitTable, scores: np.ndarray) -> EdgeToBitTable:
    """Return the table with one row for all scores: content does not count.

    It is the table's own row whose mean bits come closest to what the table gives tiles of these scores.

    Args:
        table: a learned table.
        scores: (N,) edge scores of tiles, such as the validation tiles it was built from.
    """
    aim = table.lookup(scores).mean()
    nearest = np.abs(table.rows.mean(axis=1) - aim).argmin()
    return replace(table, rows=np.repeat(table.rows[nearest : nearest + 1], len(table.rows), axis=0))
