"""Tables for models of tests."""

from __future__ import annotations

from collections.abc import Sequence

from cabm.models import Backbone
from cabm.tables.table import EdgeToBitTable


def table_of(model: Backbone, thresholds: Sequence[float], rows: Sequence[Sequence[int]]) -> EdgeToBitTable:
    """Return a table that fits a model, with these rows."""
    return EdgeToBitTable(
        thresholds=thresholds,
        rows=rows,
        strategy="lowest",
        backbone=model.name,
        scale=model.scale,
        search_space=model.precision.search_space,
        layers=model.facts.layer_names,
        tile=96,
        stride=94,
    )
