"""Control tables: the learned table's rows, without what the edge score knows."""

from __future__ import annotations

import numpy as np

from cabm.tables.controls import constant, shuffled
from cabm.tables.table import EdgeToBitTable

LAYERS = ("a", "b")
TABLE = EdgeToBitTable(
    backbone="edsr",
    scale=4,
    search_space=(4, 6, 8),
    layers=LAYERS,
    tile=96,
    stride=94,
    strategy="lowest",
    thresholds=np.array([0.0, 2.0, 9.0, 12.0, 20.0]),
    rows=np.array([[4, 4], [4, 6], [6, 6], [6, 8], [8, 8]]),
)


def test_shuffling_keeps_the_rows() -> None:
    mixed = shuffled(TABLE, seed=1)
    assert sorted(mixed.rows.tolist()) == TABLE.rows.tolist()
    assert mixed.rows.tolist() != TABLE.rows.tolist()
    assert mixed == shuffled(TABLE, seed=1) != shuffled(TABLE, seed=2)


def test_the_constant_row_has_the_mean_bits_of_the_tiles() -> None:
    scores = np.array([1.0, 3.0, 9.5, 9.5, 21.0])  # 4, 5, 6, 6 and 8 bits
    table = constant(TABLE, scores)
    assert (table.rows == [6, 6]).all()
    assert table.lookup(100.0).tolist() == [6, 6]
