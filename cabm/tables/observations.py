"""What the bit selectors chose for validation tiles, and the choice of one row of bits per score.

Observations are the raw material of an edge-to-bit table (CABM, section 3.2): the edge score of a tile
and the bits of its adaptive layers. One score sees many rows of bits; :func:`select_rows` keeps
one per score by a strategy.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from cabm.errors import InputError
from cabm.files import atomic_write

OBSERVATIONS_FORMAT = "cabm.observations/2"
SCORE_DECIMALS = 2
"""Scores are rounded to this many decimals before they become thresholds, as in the released tables."""

_FILE_KEYS = {"tile": "patch", "stride": "step"}  # the words of the format
# the last one where the archive says that it is encrypted, or of a later version
_BROKEN_ARCHIVE = (zipfile.BadZipFile, zlib.error, RuntimeError, OverflowError, MemoryError)

Strategy = Literal["lowest", "majority", "monotone"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


@dataclass(frozen=True, eq=False)
class Observations:
    """Edge score and bits of N tiles, with what a table needs to know of their origin.

    Attributes:
        scores: (N,) float64 edge scores, not rounded.
        bits: (N, L) int64.
        images: (N,) names of the images the tiles come from.
        backbone, scale, search_space, layers: the model that chose the bits.
        tile, stride: side and distance of the tiles, in low-resolution pixels.
        source_sha256: hash of its checkpoint.
        part: side of the parts of a tile that are measured, in pixels.
        measures: further numbers by name, such as the network's error: (N, R, C) float64 of the parts of
            each tile, 0 for those beyond a tile that is smaller than ``tile``.
    """

    scores: np.ndarray
    bits: np.ndarray
    images: np.ndarray
    backbone: str
    scale: int
    search_space: tuple[int, ...]
    layers: tuple[str, ...]
    tile: int
    stride: int
    source_sha256: str | None = None
    part: int | None = None
    measures: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scores = np.asarray(self.scores, dtype=np.float64)
        arrays = {
            "scores": scores,
            "bits": np.asarray(self.bits, dtype=np.int64),
            "images": np.asarray(self.images, dtype=np.str_),
            "measures": {k: np.asarray(v, dtype=np.float64) for k, v in self.measures.items()},
            "search_space": tuple(self.search_space),
            "layers": tuple(self.layers),
        }
        for name, value in arrays.items():
            object.__setattr__(self, name, value)
        per_tile = [self.scores, self.images]
        if any(array.shape != (len(scores),) for array in per_tile):
            raise ValueError(f"one number per tile: {[array.shape for array in per_tile]}")
        shapes = {array.shape for array in self.measures.values()}
        if any(len(shape) != 3 or shape[0] != len(scores) for shape in shapes) or len(shapes) > 1:
            raise ValueError(f"one number per part of each tile: {sorted(shapes)}")
        if not all(np.isfinite(array).all() for array in self.measures.values()):
            raise ValueError("measures must be finite")
        if self.bits.shape != (len(scores), len(self.layers)):
            raise ValueError(f"bits {self.bits.shape} of {len(scores)} tiles, {len(self.layers)} layers")
        check_search_space(self.search_space)

    @property
    def origin(self) -> dict[str, Any]:
        """The keyword arguments of ``build_table`` that say where the observations come from."""
        names = ("backbone", "scale", "search_space", "layers", "tile", "stride", "source_sha256")
        return {name: getattr(self, name) for name in names}

    def save(self, path: str | Path) -> None:
        """Write an .npz (without pickle), atomically; equal observations give equal bytes."""
        header = {"format": OBSERVATIONS_FORMAT, "part": self.part}
        header |= {_FILE_KEYS.get(name, name): value for name, value in self.origin.items()}
        header["measures"] = list(self.measures)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                header=np.array(json.dumps(header)),
                scores=self.scores,
                bits=self.bits.astype(np.uint8),
                images=self.images,
                **{f"measure.{name}": values for name, values in self.measures.items()},
            )

    @classmethod
    def load(cls, path: str | Path) -> Observations:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: no such file, or not a whole file of observations.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                header = json.loads(str(archive["header"]))
                if header.pop("format") != OBSERVATIONS_FORMAT:
                    raise KeyError("format")
                names = header.pop("measures")
                header |= {name: header.pop(key) for name, key in _FILE_KEYS.items()}
                arrays = {name: archive[name] for name in ("scores", "bits", "images")}
                measures = {name: archive[f"measure.{name}"] for name in names}
            return cls(**arrays, **header, measures=measures)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (OSError, EOFError, ValueError, KeyError, TypeError, *_BROKEN_ARCHIVE) as error:
            raise InputError(
                f"{path}: not a file of {OBSERVATIONS_FORMAT!r} ({error}); run edge_to_bit again"
            ) from None


def check_search_space(search_space: tuple[int, ...]) -> None:
    """Raise ValueError unless widths ascend, each 2 bits or more."""
    ascending = list(search_space) == sorted(set(search_space))
    if not search_space or not ascending or not all(2 <= width <= 32 for width in search_space):
        raise ValueError(f"search space {list(search_space)}: ascending widths of 2 bits or more")


def select_rows(
    scores: ArrayLike,
    bits: ArrayLike,
    *,
    search_space: tuple[int, ...],
    strategy: Strategy,
    fab_cap: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Keep one row of bits per rounded score.

    - ``lowest``: the row of fewest bits in all; of several, the most frequent, then the first in
      lexicographic order (CABM: the fine-tuning recovers the quality).
    - ``majority``: the most frequent row; of several, the one of fewest bits, then the first.
    - ``monotone``: bits that never fall as the score rises, for every layer: the isotonic
      regression of the ``lowest`` rows, each weighted by the tiles seen at its score, that has the least
      sum of absolute differences (the fewest bits, of several). It uses only widths of the search space,
      and one outlier at a low score does not raise all that follow, as a running maximum would.

    Args:
        scores: (N,) edge scores.
        bits: (N, L) from the search space.
        search_space: bit-widths, ascending.
        strategy: see above.
        fab_cap: observed rows whose mean bits are not below it are dropped. For ``monotone`` the result
            keeps below it too.

    Returns:
        thresholds (T,) ascending and rows (T, L); neighbours that are equal are one.

    Raises:
        InputError: nothing observed, or no row below the cap.
    """
    scores = np.round(np.asarray(scores, dtype=np.float64), SCORE_DECIMALS)
    bits = np.asarray(bits, dtype=np.int64)
    if scores.ndim != 1 or bits.ndim != 2 or len(bits) != len(scores):
        raise ValueError(f"scores {scores.shape} and bits {bits.shape} of N tiles")
    if not np.all(np.isfinite(scores) & (scores >= 0)):
        raise ValueError("edge scores must be finite and not negative")
    if not np.isin(bits, search_space).all():
        raise ValueError(f"bits outside the search space {list(search_space)} were observed")
    if strategy not in STRATEGIES:
        raise InputError(f"strategy {strategy!r}: choose one of {', '.join(STRATEGIES)}")

    if not len(bits):
        raise InputError("no tile was observed: there is nothing to build a table from")
    if fab_cap is not None:
        kept = bits.mean(axis=1) < fab_cap
        if not kept.any():
            raise InputError(
                f"fab_cap {fab_cap:g}: no observed row of bits is below it, the lowest has "
                f"{bits.mean(axis=1).min():.2f} bits; raise the cap"
            )
        scores, bits = scores[kept], bits[kept]
    thresholds, rows, weights = _one_row_per_score(scores, bits, strategy)
    if strategy == "monotone":
        lowest = rows[np.argmin(rows.sum(axis=1))]
        rows = _isotonic(rows, weights, search_space)
        if fab_cap is not None:
            # fitted layer by layer, a row can pass the cap though no observed one did
            below = rows.mean(axis=1) < fab_cap
            thresholds, rows = thresholds[below], rows[below]
            if not len(rows):
                thresholds, rows = np.zeros(1), lowest[None]
    return merge_equal_rows(thresholds, rows)


def merge_equal_rows(thresholds: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop every threshold (T,) whose row (T, L) is the one before it."""
    changed = np.concatenate([[True], np.any(rows[1:] != rows[:-1], axis=1)])
    return thresholds[changed], rows[changed]


def _one_row_per_score(
    scores: np.ndarray, bits: np.ndarray, strategy: Strategy
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds (T,), rows (T, L) and the number of tiles at each score (T,)."""
    distinct, row_id = np.unique(bits, axis=0, return_inverse=True)
    thresholds, score_id, weights = np.unique(scores, return_inverse=True, return_counts=True)
    pairs, counts = np.unique(np.stack([score_id, row_id.reshape(-1)], axis=1), axis=0, return_counts=True)
    total = distinct.sum(axis=1)[pairs[:, 1]]
    ranks = (total, -counts) if strategy != "majority" else (-counts, total)
    order = np.lexsort((pairs[:, 1], ranks[1], ranks[0], pairs[:, 0]))  # the last key counts first
    first = order[np.unique(pairs[order, 0], return_index=True)[1]]
    return thresholds, distinct[pairs[first, 1]], weights


def _isotonic(rows: np.ndarray, weights: np.ndarray, search_space: tuple[int, ...]) -> np.ndarray:
    """Non-decreasing rows (T, L) from the search space, nearest in weighted absolute difference.

    The problem falls apart into one per width: from which threshold on is a layer at least that wide?
    The best place of each step is a search over cumulative sums. Taking the last of equally good
    places gives the fewest bits, and keeps the steps of wider widths from coming before narrower ones.
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
        step = thresholds - np.argmin(cost[::-1], axis=0)
        levels += np.arange(thresholds)[:, None] >= step
    return widths[levels]
