"""The order in which the tiles of an image enter the network: one by one, or in batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from cabm.tiling.parts import Region

_TILES_PER_TURN = 8
"""Tiles per thread in a turn, within which tiles with the most work come first."""


def in_turns(work: np.ndarray, threads: int) -> list[int]:
    """Return an order of tiles that finishes early ones early, and lets all threads end together.

    Each turn gives a thread a few tiles. Within a turn, tiles with the most work come first.
    """
    turns = max(1, -(-len(work) // (_TILES_PER_TURN * threads)))
    turn = np.arange(len(work)) * turns // max(1, len(work))
    return np.lexsort((-work, turn)).tolist()


def batches(
    regions: list[list[Region]], bits: np.ndarray | None, inside: np.ndarray, pixels: int
) -> Iterator[list[tuple[int, Region]]]:
    """Yield batches of regions, each with the number of its tile; large regions come first.

    The regions of a batch have one shape and are all inside the image or all at its border. A batch has at
    most ``pixels`` pixels, unless it is a single region. It may mix rows of bits: tables have hundreds of
    rows, so one batch per row would make most batches short.
    """
    row = [0] * len(regions)
    if bits is not None and len(bits):
        # NumPy 2.0 gives the inverse another shape
        row = np.unique(bits, axis=0, return_inverse=True)[1].reshape(-1).tolist()

    def kind(job: tuple[int, Region]) -> tuple:
        number, region = job
        return bool(inside[number]), -region.outer.area, region.outer.shape

    jobs = [(number, region) for number, of_tile in enumerate(regions) for region in of_tile]
    jobs.sort(key=lambda job: (*kind(job), row[job[0]], job[0]))
    for _, alike in groupby(jobs, key=kind):
        batch: list[tuple[int, Region]] = []
        for job in alike:
            if batch and (len(batch) + 1) * job[1].outer.area > pixels:
                yield batch
                batch = []
            batch.append(job)
        yield batch
