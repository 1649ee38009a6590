"""Which parts of tiles need no network: the threshold on the edge peak, chosen by measured loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from cabm.errors import InputError
from cabm.tables.observations import SCORE_DECIMALS, Observations
from cabm.tables.table import EdgeToBitTable
from cabm.tiling.parts import TileParts

_TOGETHER = 1 << 22  # parts, in all steps of bypassing one after another, that are looked at together


def bypass_threshold(
    observations: Observations, *, max_loss_db: float, max_tile_loss_db: float
) -> tuple[float, dict[str, Any]]:
    """Choose the edge peak below which bicubic takes the network's place, by measurement.

    Parts of tiles are taken in the order of their peak. The threshold is the highest at which PSNR over all
    tiles together falls by no more than ``max_loss_db``, and that of no tile by more than
    ``max_tile_loss_db``. Parts that a rectangle of computed ones goes over are the network's all the same.

    Returns:
        The threshold (0: nothing is bypassed) and what was measured there: ``loss_db`` over all tiles,
        ``tile_loss_db`` of the tile that loses most, ``share`` of the pixels that are bicubic, 0..1.

    Raises:
        InputError: observations without the errors of parts.
    """
    nothing = {
        "max_loss_db": max_loss_db,
        "max_tile_loss_db": max_tile_loss_db,
        "loss_db": 0.0,
        "tile_loss_db": 0.0,
        "share": 0.0,
    }
    if max_loss_db == 0:
        return 0.0, nothing
    missing = {"peaks", "network_sse", "bicubic_sse", "samples"} - observations.measures.keys()
    if missing or observations.part is None:
        raise InputError(
            f"observations without {', '.join(sorted(missing)) or 'part'}: run edge_to_bit again"
        )
    # rounded down, a peak is below a threshold of as many decimals where it was before
    scaled = observations.measures["peaks"] * 10**SCORE_DECIMALS
    peaks = (np.floor(scaled) / 10**SCORE_DECIMALS).reshape(len(scaled), -1)
    more, pixels = _added_by(peaks, observations)
    order = np.argsort(peaks, axis=None, kind="stable")
    tile = order // peaks.shape[1]
    peaks, more, pixels = (values.ravel()[order] for values in (peaks, more, pixels))
    of_tiles = observations.measures["network_sse"].sum(axis=(1, 2))
    # one squared level per tile: a tile that both get right has no ratio
    tile_loss = 10 * np.log10((of_tiles[tile] + _sums_by(tile, more) + 1) / (of_tiles[tile] + 1))
    worst = np.maximum.accumulate(tile_loss)
    total = of_tiles.sum()
    loss = 10 * np.log10((total + np.cumsum(more) + 1) / (total + 1))
    # a threshold lies between two peaks that differ; the last part cannot be passed
    allowed = (worst <= max_tile_loss_db) & (loss <= max_loss_db)
    ends = np.flatnonzero((np.diff(peaks) > 0) & allowed[:-1])
    if not len(ends):
        return 0.0, nothing
    last = ends[-1]
    found = {
        "loss_db": float(loss[last]),
        "tile_loss_db": float(max(worst[last], 0.0)),
        "share": float(pixels[: last + 1].sum() / observations.measures["samples"].sum()),
    }
    return float(peaks[last + 1]), nothing | found


def _added_by(peaks: np.ndarray, observations: Observations) -> tuple[np.ndarray, np.ndarray]:
    """Return what each part adds when it is bypassed after those of its tile with lower peaks.

    Args:
        peaks: (N, R * C).
        observations: of these N tiles.

    Returns:
        Squared error, and samples that are bicubic, each (N, R * C). What a part adds may come to others:
        it may be the last that a rectangle was there for.
    """
    part, tile, measures = observations.part, observations.tile, observations.measures
    n, count = peaks.shape
    order = np.argsort(peaks, axis=1, kind="stable")
    rank = np.argsort(order, axis=1)
    added = np.empty((2, n, count))
    worse = measures["bicubic_sse"] - measures["network_sse"]
    together = max(1, _TOGETHER // count**2)
    for first in range(0, n, together):
        some = np.arange(first, min(first + together, n))
        bypassed = rank[some, None, :] <= np.arange(count)[:, None]  # (n, steps, parts)
        shape = (-1, *worse.shape[1:])
        left_out = TileParts(part, tile, tile, bypassed.reshape(shape)).left_out
        left_out = left_out.reshape(len(some), count, *worse.shape[1:])
        for total, values in zip(added, (worse, measures["samples"]), strict=True):
            sums = np.einsum("nkrc,nrc->nk", left_out, values[some])
            steps = np.diff(sums, axis=1, prepend=0)
            total[some] = np.take_along_axis(steps, rank[some], axis=1)
    return added[0], added[1]


def _sums_by(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Running sums (n,) of values (n,), each over those of its group (n,) up to it."""
    order = np.argsort(group, kind="stable")
    sums = np.cumsum(values[order])
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    before = np.repeat(sums[starts] - values[order][starts], np.diff(starts, append=len(group)))
    result = np.empty_like(sums)
    result[order] = sums - before
    return result


def apply_bypass(
    table: EdgeToBitTable, observations: Observations, *, max_loss_db: float, max_tile_loss_db: float
) -> EdgeToBitTable:
    """Return the table with the bypass that `bypass_threshold` chooses."""
    threshold, info = bypass_threshold(
        observations, max_loss_db=max_loss_db, max_tile_loss_db=max_tile_loss_db
    )
    return table.with_part_bypass(observations.part, threshold, info)
