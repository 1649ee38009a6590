"""The integer engine as a contender: a process without PyTorch, as one that upscales images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cabm.bench.processes import Run
from cabm.engine.integer import IntegerModel
from cabm.engine.kept import read_model
from cabm.models.facts import ModelFacts

INTEGER = "int8 engine"
ONE_THREAD = "int8 engine, 1 thread"


@dataclass(frozen=True)
class CompiledWork:
    """A compiled model and the tiles to upscale.

    Attributes:
        model: a file of `cabm.engine.kept.write_model`.
        tiles: a .npy file, (tiles,3,tile,tile) uint8.
        bits: a .npy file, (tiles,L) widths of all layers; None for models that take none.
        threads: CPU threads.
    """

    model: Path
    tiles: Path
    bits: Path | None
    threads: int


def runs_of_file(work: CompiledWork) -> dict[str, Run]:
    """Return the runs of `runs` for a compiled model that was written to a file."""
    bits = None if work.bits is None else np.load(work.bits, allow_pickle=False)
    tiles = np.load(work.tiles, allow_pickle=False)
    return runs(read_model(work.model), tiles, bits, work.threads)


def runs(engine: IntegerModel, tiles: np.ndarray, bits: np.ndarray | None, threads: int) -> dict[str, Run]:
    """Return runs of the integer engine: on all threads, on one, and on one with each width."""
    found: dict[str, Run] = {
        INTEGER: partial(engine.run, tiles, bits, threads=threads),
        ONE_THREAD: partial(engine.run, tiles, bits, threads=1),
    }
    for width in widths(engine.facts):
        rows = np.full((len(tiles), engine.num_adaptive), width)
        found[at_width(width)] = partial(engine.run, tiles, rows, threads=1)
    return found


def widths(facts: ModelFacts) -> tuple[int, ...]:
    """Return the widths that a model's layers choose from; none if they have one width only."""
    return facts.precision.search_space if facts.precision.kind in ("cadyq", "cabm") else ()


def at_width(width: int) -> str:
    """Return the name of the engine's run with one width in all layers."""
    return f"{ONE_THREAD}, {width} bits"
