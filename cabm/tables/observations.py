"""The scores and bits of observed tiles, from which tables are built.

Observations are kept in a file of their own, so that a table can be rebuilt with another strategy or
bypass budget without running the network.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from cabm.errors import InputError
from cabm.files import atomic_write

OBSERVATIONS_FORMAT = "cabm.observations/2"
MEASURES = ("peaks", "network_sse", "bicubic_sse", "samples")
"""What is measured of each part of a tile; see `cabm.evaluation.observe.observe`."""

_FILE_KEYS = {"tile": "patch", "stride": "step"}  # keys that differ from the names of the fields
# numpy raises the last two for archives that claim to be encrypted or of a later version
_BROKEN_ARCHIVE = (zipfile.BadZipFile, zlib.error, RuntimeError, OverflowError, MemoryError)


def check_search_space(search_space: tuple[int, ...]) -> tuple[int, ...]:
    """Return the widths if they ascend and each is 2..32 bits, else raise ValueError."""
    ascending = list(search_space) == sorted(set(search_space))
    if not search_space or not ascending or not all(2 <= width <= 32 for width in search_space):
        raise ValueError(f"search space {list(search_space)}: give ascending widths from 2 to 32 bits")
    return search_space


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The model and tiles that bits were observed with.

    The annotations are checked where `EdgeToBitTable` reads a file, whose keys are the aliases.

    Attributes:
        backbone, scale: the model.
        search_space: the bit-widths it selects from, ascending.
        layers: names of its L adaptive layers, one per column of bits.
        tile, stride: side of the tiles and distance between neighbours, in low-resolution pixels.
    """

    backbone: Annotated[str, Field(min_length=1)]
    scale: Annotated[int, Field(ge=1, le=64)]
    search_space: Annotated[tuple[int, ...], AfterValidator(check_search_space)]
    layers: Annotated[tuple[str, ...], Field(min_length=1)]
    tile: Annotated[int, Field(ge=1, alias=_FILE_KEYS["tile"])]
    stride: Annotated[int, Field(ge=1, alias=_FILE_KEYS["stride"])]


@dataclass(frozen=True, eq=False, kw_only=True)
class Observations(Origin):
    """Edge scores and bits of N tiles.

    Attributes:
        source_sha256: hash of the weights that selected the bits.
        scores: (N,) float64 edge scores, not rounded.
        bits: (N, L) int64.
        images: (N,) name of the image that each tile is from.
        part: side in pixels of the parts of a tile that were measured; None if none were.
        measures: arrays (N, R, C) float64 by name, one value per part of each tile; 0 for parts beyond the
            end of a tile that is smaller than ``tile``. See `MEASURES`.
        noise: (L, K) noise of every layer at every width of the search space; None if it was not measured.
            See `cabm.evaluation.sensitivity.layer_noise`.

    Raises:
        ValueError: the arrays do not fit together, a measure is not finite, or the search space is wrong.
    """

    source_sha256: str | None = None
    scores: np.ndarray
    bits: np.ndarray
    images: np.ndarray
    part: int | None = None
    measures: dict[str, np.ndarray] = field(default_factory=dict)
    noise: np.ndarray | None = None

    def __post_init__(self) -> None:
        scores = np.asarray(self.scores, dtype=np.float64)
        converted = {
            "scores": scores,
            "bits": np.asarray(self.bits, dtype=np.int64),
            "images": np.asarray(self.images, dtype=np.str_),
            "measures": {k: np.asarray(v, dtype=np.float64) for k, v in self.measures.items()},
            "search_space": check_search_space(tuple(self.search_space)),
            "layers": tuple(self.layers),
        }
        for name, value in converted.items():
            object.__setattr__(self, name, value)
        per_tile = [self.scores, self.images]
        if any(array.shape != (len(scores),) for array in per_tile):
            raise ValueError(f"expected one value per tile, got {[array.shape for array in per_tile]}")
        shapes = {array.shape for array in self.measures.values()}
        if any(len(shape) != 3 or shape[0] != len(scores) for shape in shapes) or len(shapes) > 1:
            raise ValueError(f"expected one value per part of each tile, got {sorted(shapes)}")
        if not all(np.isfinite(array).all() for array in self.measures.values()):
            raise ValueError("measures must be finite")
        if self.bits.shape != (len(scores), len(self.layers)):
            raise ValueError(f"bits {self.bits.shape} of {len(scores)} tiles, {len(self.layers)} layers")
        if self.noise is not None:
            wanted = (len(self.layers), len(self.search_space))
            if self.noise.shape != wanted or not np.isfinite(self.noise).all():
                raise ValueError(f"noise {self.noise.shape}: expected {wanted} finite numbers")

    @property
    def origin(self) -> dict[str, Any]:
        """The fields that a table takes over: those of `Origin`, and ``source_sha256``."""
        names = [*(each.name for each in fields(Origin)), "source_sha256"]
        return {name: getattr(self, name) for name in names}

    def save(self, path: str | Path) -> None:
        """Write an .npz without pickled objects, atomically. Equal observations give equal bytes."""
        header = {"format": OBSERVATIONS_FORMAT}
        header |= {_FILE_KEYS.get(name, name): value for name, value in self.origin.items()}
        header |= {"part": self.part, "measures": list(self.measures)}
        noise = {} if self.noise is None else {"noise": self.noise}
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                header=np.array(json.dumps(header)),
                scores=self.scores,
                bits=self.bits.astype(np.uint8),
                images=self.images,
                **{f"measure.{name}": values for name, values in self.measures.items()},
                **noise,
            )

    @classmethod
    def load(cls, path: str | Path) -> Observations:
        """Read a file that :meth:`save` wrote.

        Raises:
            InputError: there is no such file, or it is not a complete file of observations.
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
                noise = archive.get("noise")
            return cls(**arrays, **header, measures=measures, noise=noise)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (OSError, EOFError, ValueError, KeyError, TypeError, *_BROKEN_ARCHIVE) as error:
            raise InputError(
                f"{path}: not a file of {OBSERVATIONS_FORMAT!r} ({error}); run edge_to_bit again"
            ) from None
