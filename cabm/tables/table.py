"""The edge-to-bit table: bits of every adaptive layer, looked up by the edge score of a tile.

CABM, section 3.2. A table is built from :class:`Observations` of a trained CADyQ model, which live in a
file of their own, so that it can be built again by another strategy without running the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from cabm.errors import InputError
from cabm.tables.file import read_table, write_table
from cabm.tables.observations import (
    STRATEGIES,
    Observations,
    Strategy,
    check_search_space,
    select_rows,
)
from cabm.tiling.edges import EDGE_BLOCK, EDGE_OPERATOR, TileEdges
from cabm.tiling.parts import TileParts
from cabm.tiling.plan import TilePlan

__all__ = ["STRATEGIES", "EdgeToBitTable", "Observations", "Strategy", "build_table"]


@dataclass(frozen=True, eq=False)
class EdgeToBitTable:
    """Bits by edge score, for one model.

    A score takes the row of the largest threshold not above it; below the first threshold, the
    first row.

    Attributes:
        backbone, scale: the model it belongs to.
        search_space: the bit-widths a row may hold, ascending.
        layers: names of the adaptive positions, one per column.
        tile, stride: side and distance of the tiles it was built with, in low-resolution pixels.
        strategy: how one row per score was kept.
        thresholds: (T,) float64 scores, ascending, the first at least 0.
        rows: (T, L) int64 bits from the search space.
        operator: the edge operator of the scores.
        source_sha256: hash of the checkpoint the bits were observed with.
        fab_cap: rows at or above it were dropped.
        bypass: what is bypassed and how that was chosen (budget, measured loss); None: nothing. Parts of
            tiles (``part``: their side in pixels) whose edge peak is below ``threshold`` are bypassed.

    Raises:
        ValueError: the parts do not fit together; the message names the first that does not.
    """

    backbone: str
    scale: int
    search_space: tuple[int, ...]
    layers: tuple[str, ...]
    tile: int
    stride: int
    strategy: str
    thresholds: np.ndarray
    rows: np.ndarray
    operator: str = EDGE_OPERATOR
    source_sha256: str | None = None
    fab_cap: float | None = None
    bypass: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "search_space", tuple(self.search_space))
        object.__setattr__(self, "layers", tuple(self.layers))
        check_search_space(self.search_space)
        if self.operator != EDGE_OPERATOR:
            raise ValueError(f"edge operator {self.operator!r}, this version has {EDGE_OPERATOR!r}")
        thresholds = np.array(self.thresholds, dtype=np.float64)
        if thresholds.ndim != 1 or not len(thresholds):
            raise ValueError("thresholds: expected a list of at least one score")
        if not np.isfinite(thresholds).all() or thresholds[0] < 0:
            raise ValueError("thresholds: scores must be finite and not negative")
        if np.any(np.diff(thresholds) <= 0):
            at = int(np.argmax(np.diff(thresholds) <= 0)) + 1
            raise ValueError(
                f"thresholds: {thresholds[at]:g} at position {at} is not above "
                f"{thresholds[at - 1]:g} before it"
            )
        if len(self.rows) != len(thresholds):
            raise ValueError(f"rows: {len(self.rows)} for {len(thresholds)} thresholds")
        for number, row in enumerate(self.rows):
            if len(row) != len(self.layers):
                raise ValueError(f"rows: {len(row)} bits in row {number}, {len(self.layers)} layers")
        rows = np.array(self.rows, dtype=np.int64)
        if not rows.all():
            row = int(np.flatnonzero(~rows.all(axis=1))[0])
            raise ValueError(
                f"rows: 0 bits in row {row}; tables that skip layers or tiles are no longer supported"
            )
        foreign = np.argwhere(~np.isin(rows, self.search_space))
        if len(foreign):
            row, layer = foreign[0]
            raise ValueError(
                f"rows: {rows[row, layer]} bits in row {row} for layer {self.layers[layer]}, "
                f"search space {list(self.search_space)}"
            )
        if self.bypass is not None:
            _check_bypass(self.bypass)
        for name, array in (("thresholds", thresholds), ("rows", rows)):
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EdgeToBitTable):
            return NotImplemented
        return self._document() == other._document()

    def lookup(self, scores: ArrayLike | Tensor) -> np.ndarray:
        """Bits for tiles: scores of any shape (...) in [0, inf) -> (..., L) int64.

        Raises:
            ValueError: a score is negative, infinite or not a number.
        """
        values = _as_float64(scores)
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise ValueError("edge scores must be finite and not negative")
        index = np.searchsorted(self.thresholds, values, side="right") - 1
        return self.rows[np.maximum(index, 0)]

    def fab_of(self, scores: ArrayLike | Tensor) -> np.ndarray:
        """Mean bits over the layers, by score: (...) float64."""
        return self.lookup(scores).mean(axis=-1)

    @property
    def part(self) -> int | None:
        """Side in pixels of the parts of tiles that can be bypassed; None: nothing is."""
        return None if self.bypass is None else self.bypass["part"]

    def assign(self, edges: TileEdges, tile_plan: TilePlan) -> tuple[np.ndarray, TileParts]:
        """Give tiles their bits.

        Args:
            edges: of N tiles, with the peaks of parts of `part` pixels if the table has that.
            tile_plan: the shape of the tiles.

        Returns:
            (N, L) int64 bits, zeros for tiles that do not enter the network, and which parts do not.
        """
        bits = self.lookup(edges.scores)
        shape = (tile_plan.tile_height, tile_plan.tile_width)
        if self.bypass is None:
            return bits, TileParts.of_tiles(*shape, np.zeros(len(bits), dtype=bool))
        parts = TileParts(self.part, *shape, _as_float64(edges.peaks) < self.bypass["threshold"])
        return np.where(parts.entered[:, None], bits, 0), parts

    def with_part_bypass(
        self, part: int, threshold: float, info: Mapping[str, Any] | None = None
    ) -> EdgeToBitTable:
        """Return the table that bypasses smooth parts of tiles.

        Args:
            part: side of the parts in pixels, a multiple of 8.
            threshold: parts with an edge peak below it are not computed; 0 takes the bypass away.
            info: what to record with it, such as budget and measured loss in dB (JSON values).

        Raises:
            ValueError: another part, or a threshold that is negative or not finite.
        """
        if not threshold:
            return replace(self, bypass=None)
        return replace(self, bypass={"part": part, "threshold": float(threshold), **(info or {})})

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
            InputError: another backbone, scale or list of layers, or widths that the model lacks; the
                message names both sides.
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
        """Summary as JSON values; ``by_score`` has one entry per threshold, low scores first."""
        fab = self.rows.mean(axis=1)
        ends = [*self.thresholds[1:].tolist(), None]
        by_score = [
            {
                "from": float(start),
                "to": end,
                "fab": round(float(value), 4),
                "layers_by_bits": {str(b): int(n) for b in self.search_space if (n := np.sum(row == b))},
            }
            for start, end, value, row in zip(self.thresholds, ends, fab, self.rows, strict=True)
        ]
        summary = {k: v for k, v in self._document().items() if k not in ("thresholds", "rows")}
        return summary | {
            "num_layers": len(self.layers),
            "num_rows": len(self.rows),
            "fab_lowest": round(float(fab.min()), 4),
            "fab_highest": round(float(fab.max()), 4),
            "by_score": by_score,
        }

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, one row of bits a line, atomically."""
        write_table(path, self._document())

    @classmethod
    def load(cls, path: str | Path) -> EdgeToBitTable:
        """Read a table and check all of it.

        Raises:
            InputError: no such file, not JSON, another format, a wrong type or value; names file and place.
        """
        fields = read_table(path)
        try:
            return cls(**fields)
        except ValueError as error:
            raise InputError(f"{path}: {error}; rebuild the table") from None

    def _document(self) -> dict[str, Any]:
        return {
            "backbone": self.backbone,
            "scale": self.scale,
            "search_space": list(self.search_space),
            "layers": list(self.layers),
            "patch": self.tile,
            "step": self.stride,
            "operator": self.operator,
            "strategy": self.strategy,
            "fab_cap": self.fab_cap,
            "source_sha256": self.source_sha256,
            "bypass": None if self.bypass is None else dict(self.bypass),
            "thresholds": self.thresholds.tolist(),
            "rows": self.rows.tolist(),
        }


def build_table(
    scores: ArrayLike,
    bits: ArrayLike,
    *,
    backbone: str,
    scale: int,
    search_space: Sequence[int],
    layers: Sequence[str],
    tile: int,
    stride: int,
    strategy: Strategy = "lowest",
    fab_cap: float | None = None,
    source_sha256: str | None = None,
) -> EdgeToBitTable:
    """Build a table from the scores (N,) and the bits (N, L) of observed tiles.

    See :func:`cabm.tables.observations.select_rows` for the strategies and the cap,
    :class:`EdgeToBitTable` for the rest. Of :class:`Observations` ``o`` it is
    ``build_table(o.scores, o.bits, **o.origin, strategy=...)``.

    Raises:
        InputError: nothing observed, no row below ``fab_cap``, an unknown strategy.
    """
    search_space = tuple(search_space)
    check_search_space(search_space)
    thresholds, rows = select_rows(
        scores, bits, search_space=search_space, strategy=strategy, fab_cap=fab_cap
    )
    return EdgeToBitTable(
        backbone=backbone,
        scale=scale,
        search_space=search_space,
        layers=tuple(layers),
        tile=tile,
        stride=stride,
        strategy=strategy,
        thresholds=thresholds,
        rows=rows,
        fab_cap=fab_cap,
        source_sha256=source_sha256,
    )


def _check_bypass(bypass: Mapping[str, Any]) -> None:
    part, threshold = bypass.get("part"), bypass.get("threshold")
    if not isinstance(part, int) or part < EDGE_BLOCK or part % EDGE_BLOCK:
        raise ValueError(f"bypass: parts of {part!r} pixels, expected a multiple of {EDGE_BLOCK}")
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not number or not np.isfinite(threshold) or threshold < 0:
        raise ValueError(f"bypass: threshold {threshold!r} must be finite and not negative")


def _as_float64(scores: ArrayLike | Tensor) -> np.ndarray:
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu().numpy()
    return np.asarray(scores, dtype=np.float64)


def _model_name(backbone: str, scale: int, layers: Sequence[str]) -> str:
    return f"{backbone} x{scale} with {len(layers)} adaptive layers ({layers[0]} .. {layers[-1]})"
