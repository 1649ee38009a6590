"""Control tables, which show what the edge score contributes.

They hold the rows of a learned table at the wrong scores, or a single row for all scores.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cabm.tables.table import EdgeToBitTable

CONTROLS = ("cabm_shuffled", "cabm_constant")
"""Names of the methods that use the two control tables."""


def shuffled(table: EdgeToBitTable, *, seed: int) -> EdgeToBitTable:
    """Return the table with its rows in random order."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(table.rows))
    return replace(table, rows=table.rows[order])


def constant(table: EdgeToBitTable, scores: np.ndarray) -> EdgeToBitTable:
    """Return the table with one of its rows at all scores, so that content does not matter.

    The mean bits of this row are the closest to those that the table assigns to tiles of ``scores`` (N,).
    """
    target = table.lookup(scores).mean()
    nearest = np.abs(table.rows.mean(axis=1) - target).argmin()
    return replace(table, rows=np.repeat(table.rows[nearest : nearest + 1], len(table.rows), axis=0))
