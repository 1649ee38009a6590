"""The edge-to-bit table: the bits of every adaptive layer, looked up by a tile's edge score.

CABM, section 3.2. Tables are built from :class:`Observations` of a trained CADyQ model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, TypeAdapter
from pydantic.dataclasses import dataclass

from cabm.errors import InputError
from cabm.tables.bypass import Bypass
from cabm.tables.constant import least_noise_row
from cabm.tables.cost import fab
from cabm.tables.file import read_document, write_document
from cabm.tables.observations import Observations, Origin
from cabm.tables.rows import Strategy, select_rows
from cabm.tiling.edges import EDGE_OPERATOR, TileEdges
from cabm.tiling.parts import TileParts
from cabm.tiling.plan import TilePlan


def _as_lists(values: object) -> object:
    return values.tolist() if isinstance(values, np.ndarray) else values


if TYPE_CHECKING:
    Scores = Rows = np.ndarray
else:  # lists in files, checked as such; arrays in memory
    _lists = (BeforeValidator(_as_lists), PlainSerializer(np.ndarray.tolist))
    Scores = Annotated[list[float], *_lists]
    Rows = Annotated[list[list[Annotated[int, Field(ge=0, le=32)]]], *_lists]


@dataclass(
    frozen=True,
    eq=False,
    kw_only=True,
    config=ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True),
)
class EdgeToBitTable(Origin):
    """Bits by edge score, for one model.

    A score selects the row of the largest threshold that is not above it, or the first row if it is below
    all of them. The fields, in this order, make the file; see :meth:`save`.

    Attributes:
        backbone, scale: the model that the table belongs to.
        search_space: the bit-widths that rows may hold, ascending.
        layers: names of the L adaptive layers, one per column.
        tile, stride: side of the tiles it was built with and distance between neighbours, in
            low-resolution pixels.
        operator: the edge operator of the scores.
        strategy: how the rows were selected; see `build_table`.
        fab_cap: rows of this mean or above were dropped, or the budget of ``constant``; None: no cap.
        source_sha256: hash of the weights that selected the bits.
        bypass: which parts of tiles bypass the network; None: none do.
        contrast_limit: highest contrast of what enters the network, see `limit_contrast`; None: no limit.
        thresholds: (T,) float64 edge scores, ascending, not negative.
        rows: (T, L) int64 bits.

    Raises:
        ValueError: a field has a wrong type or value, or the fields do not fit together.
    """

    operator: str = EDGE_OPERATOR
    strategy: str
    fab_cap: float | None = None
    source_sha256: str | None = None
    bypass: Bypass | None = None
    contrast_limit: Annotated[float, Field(gt=0)] | None = None
    thresholds: Scores
    rows: Rows

    def __post_init__(self) -> None:
        if self.operator != EDGE_OPERATOR:
            raise ValueError(f"edge operator {self.operator!r}, this version has {EDGE_OPERATOR!r}")
        thresholds = np.array(self.thresholds, dtype=np.float64)
        _check_thresholds(thresholds)
        if len(self.rows) != len(thresholds):
            raise ValueError(f"rows: {len(self.rows)} for {len(thresholds)} thresholds")
        for number, row in enumerate(self.rows):
            if len(row) != len(self.layers):
                raise ValueError(f"rows: {len(row)} bits in row {number}, {len(self.layers)} layers")
        rows = np.array(self.rows, dtype=np.int64)
        self._check_bits(rows)
        for name, array in (("thresholds", thresholds), ("rows", rows)):
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def _check_bits(self, rows: np.ndarray) -> None:
        foreign = np.argwhere(~np.isin(rows, self.search_space))
        if not len(foreign):
            return
        row, layer = foreign[0]
        if not rows[row, layer]:
            raise ValueError(
                f"rows: 0 bits in row {row}; tables that skip layers or tiles are no longer supported"
            )
        raise ValueError(
            f"rows: {rows[row, layer]} bits in row {row} for layer {self.layers[layer]}, "
            f"search space {list(self.search_space)}"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EdgeToBitTable):
            return NotImplemented
        return self._document() == other._document()

    def lookup(self, scores: ArrayLike) -> np.ndarray:
        """Look up the bits of tiles.

        Args:
            scores: edge scores of any shape (...).

        Returns:
            (..., L) int64.

        Raises:
            ValueError: a score is negative, infinite or not a number.
        """
        values = np.asarray(scores, dtype=np.float64)
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise ValueError("edge scores must be finite and not negative")
        index = np.searchsorted(self.thresholds, values, side="right") - 1
        return self.rows[np.maximum(index, 0)]

    def fab_of(self, scores: ArrayLike) -> np.ndarray:
        """Return the mean bits over the layers for edge scores of any shape (...): (...) float64."""
        return self.lookup(scores).mean(axis=-1)

    @property
    def part(self) -> int | None:
        """Side in pixels of the parts of tiles that can be bypassed; None without bypass."""
        return None if self.bypass is None else self.bypass.part

    def assign(self, edges: TileEdges, tile_plan: TilePlan) -> tuple[np.ndarray, TileParts]:
        """Give tiles their bits.

        Args:
            edges: of N tiles, with the peaks of parts of `part` pixels if the table has a bypass.
            tile_plan: a plan with tiles of that shape.

        Returns:
            (N, L) int64 bits, zeros for tiles that do not enter the network, and the bypassed parts.
        """
        bits = self.lookup(edges.scores)
        shape = (tile_plan.tile_height, tile_plan.tile_width)
        if self.bypass is None:
            return bits, TileParts.all_computed(len(bits), *shape)
        parts = TileParts(self.bypass.part, *shape, edges.peaks < self.bypass.threshold)
        return np.where(parts.entered[:, None], bits, 0), parts

    def check(
        self,
        *,
        backbone: str,
        scale: int,
        layers: Sequence[str],
        search_space: Sequence[int] | None = None,
    ) -> None:
        """Refuse a model that the table was not built for.

        Args:
            backbone, scale, layers: of the model.
            search_space: the model's widths; None: not compared.

        Raises:
            InputError: another backbone, scale or list of layers, or widths that the model lacks.
        """
        if (self.backbone, self.scale, self.layers) != (backbone, scale, tuple(layers)):
            raise InputError(
                f"edge-to-bit table of {_model_name(self.backbone, self.scale, self.layers)} "
                f"does not fit the model, {_model_name(backbone, scale, layers)}: "
                "use the table that was built from this model"
            )
        if search_space is not None and not np.isin(self.rows, search_space).all():
            raise InputError(
                f"edge-to-bit table of widths {np.unique(self.rows).tolist()} does not fit the model's "
                f"search space {list(search_space)}: use the table that was built from this model"
            )

    def describe(self) -> dict[str, Any]:
        """Summarise the table as JSON values; ``by_score`` has one entry per threshold, ascending."""
        means = self.rows.mean(axis=1)
        ends = [*self.thresholds[1:].tolist(), None]
        by_score = [
            {
                "from": float(start),
                "to": end,
                "fab": round(float(value), 4),
                "layers_by_bits": {str(b): int(n) for b in self.search_space if (n := np.sum(row == b))},
            }
            for start, end, value, row in zip(self.thresholds, ends, means, self.rows, strict=True)
        ]
        summary = {k: v for k, v in self._document().items() if k not in ("thresholds", "rows")}
        return summary | {
            "num_layers": len(self.layers),
            "num_rows": len(self.rows),
            "fab_lowest": round(float(means.min()), 4),
            "fab_highest": round(float(means.max()), 4),
            "by_score": by_score,
        }

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, atomically."""
        write_document(path, self._document())

    @classmethod
    def load(cls, path: str | Path) -> EdgeToBitTable:
        """Read and check a table.

        Raises:
            InputError: there is no such file, or something in it is missing or wrong; names the place.
        """
        return read_document(path, cls)

    def _document(self) -> dict[str, Any]:
        document = TypeAdapter(EdgeToBitTable).dump_python(self, mode="json", by_alias=True)
        if self.contrast_limit is None:
            del document["contrast_limit"]
        if self.bypass is not None:
            document["bypass"] = {k: v for k, v in document["bypass"].items() if v is not None}
        return document


def build_table(
    observations: Observations,
    *,
    strategy: Strategy | Literal["constant"] = "lowest",
    fab_cap: float | None = None,
) -> EdgeToBitTable:
    """Build a table without bypass; see also `cabm.tables.bypass.choose_bypass`.

    Args:
        observations: scores and bits of tiles, and for ``constant`` the layers' noise.
        strategy: how to select one row per score, see `cabm.tables.rows.select_rows`; or ``constant``: one
            row for all tiles, see `cabm.tables.constant.least_noise_row`.
        fab_cap: see there; None: all rows or, for ``constant``, the mean of the observed bits.

    Raises:
        InputError: nothing was observed, no row is below ``fab_cap``, the strategy is unknown, or it is
            ``constant`` and no noise was measured.
    """
    if strategy == "constant":
        thresholds, rows = np.zeros(1), _constant_row(observations, fab_cap)[None]
    else:
        thresholds, rows = select_rows(
            observations.scores,
            observations.bits,
            search_space=observations.search_space,
            strategy=strategy,
            fab_cap=fab_cap,
        )
    return EdgeToBitTable(
        **observations.origin,
        strategy=strategy,
        fab_cap=fab_cap,
        thresholds=thresholds,
        rows=rows,
    )


def _constant_row(observations: Observations, fab_cap: float | None) -> np.ndarray:
    if observations.noise is None:
        raise InputError(
            "strategy constant: these observations have no noise of layers;"
            " run the stage edge_to_bit with this strategy"
        )
    cap = fab(observations.bits) if fab_cap is None else fab_cap
    return least_noise_row(observations.noise, observations.search_space, cap)


def _check_thresholds(thresholds: np.ndarray) -> None:
    if thresholds.ndim != 1 or not len(thresholds):
        raise ValueError("thresholds: expected a list of at least one score")
    if not np.isfinite(thresholds).all() or thresholds[0] < 0:
        raise ValueError("thresholds: scores must be finite and not negative")
    wrong = np.flatnonzero(np.diff(thresholds) <= 0)
    if len(wrong):
        at = int(wrong[0]) + 1
        before = f"{thresholds[at - 1]:g} before it"
        raise ValueError(f"thresholds: {thresholds[at]:g} at position {at} is not above {before}")


def _model_name(backbone: str, scale: int, layers: Sequence[str]) -> str:
    return f"{backbone} x{scale} with {len(layers)} adaptive layers ({layers[0]} .. {layers[-1]})"
