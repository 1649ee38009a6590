"""Bypass of smooth parts of tiles: the threshold on their edge peak, chosen from the measured loss."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from cabm.errors import InputError
from cabm.tables.observations import MEASURES, Observations
from cabm.tables.rows import SCORE_DECIMALS
from cabm.tiling.edges import EDGE_BLOCK
from cabm.tiling.parts import TileParts

_TOGETHER = 1 << 22  # parts looked at together, counted over all steps of bypassing one after another


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class Bypass:
    """Which parts of tiles keep their bicubic upscaling, and the loss that this was chosen by.

    Attributes:
        part: side of the parts in low-resolution pixels, a multiple of `EDGE_BLOCK`.
        threshold: parts with an edge peak below this may be bypassed.
        max_loss_db: budget for the loss of PSNR over all tiles together.
        max_tile_loss_db: budget for the loss of PSNR of any one tile.
        loss_db: measured loss over all validation tiles; a gain is negative.
        tile_loss_db: measured loss of the tile that loses most.
        share: share of the pixels of the validation tiles that are bypassed, 0..1.

    Raises:
        ValueError: a wrong type or range.
    """

    part: Annotated[int, Field(ge=EDGE_BLOCK, multiple_of=EDGE_BLOCK)]
    threshold: Annotated[float, Field(ge=0)]
    max_loss_db: float | None = None
    max_tile_loss_db: float | None = None
    loss_db: float | None = None
    tile_loss_db: float | None = None
    share: float | None = None


def choose_bypass(
    observations: Observations, *, max_loss_db: float, max_tile_loss_db: float
) -> Bypass | None:
    """Choose the highest threshold on the edge peak that keeps the loss of PSNR within two budgets.

    Parts of tiles are bypassed one after another, in the order of their peaks. Parts that a rectangle of
    computed parts covers are still computed by the network; see `cabm.tiling.parts`.

    Args:
        observations: with the measures of their parts.
        max_loss_db: how far PSNR over all tiles together may fall; 0: no bypass.
        max_tile_loss_db: how far PSNR of any one tile may fall.

    Returns:
        None if nothing can be bypassed within the budgets.

    Raises:
        InputError: the observations have no measures of parts.
    """
    if max_loss_db == 0:
        return None
    missing = set(MEASURES) - observations.measures.keys()
    if missing or observations.part is None:
        raise InputError(
            f"observations without {', '.join(sorted(missing)) or 'part'}: run edge_to_bit again"
        )
    # round peaks down, so that those below a threshold of as many decimals stay below it
    scaled = observations.measures["peaks"] * 10**SCORE_DECIMALS
    peaks = (np.floor(scaled) / 10**SCORE_DECIMALS).reshape(len(scaled), -1)
    more, pixels = _added_by_part(peaks, observations)
    order = np.argsort(peaks, axis=None, kind="stable")
    tile = order // peaks.shape[1]
    peaks, more, pixels = (values.ravel()[order] for values in (peaks, more, pixels))
    of_tiles = observations.measures["network_sse"].sum(axis=(1, 2))
    # add one squared level: the ratio has no value for a tile that both reproduce exactly
    tile_loss = 10 * np.log10((of_tiles[tile] + _running_sums(tile, more) + 1) / (of_tiles[tile] + 1))
    worst = np.maximum.accumulate(tile_loss)
    total = of_tiles.sum()
    loss = 10 * np.log10((total + np.cumsum(more) + 1) / (total + 1))
    # a threshold must lie between two different peaks, so the highest peak is never bypassed
    allowed = (worst <= max_tile_loss_db) & (loss <= max_loss_db)
    ends = np.flatnonzero((np.diff(peaks) > 0) & allowed[:-1])
    if not len(ends):
        return None
    last = ends[-1]
    return Bypass(
        part=observations.part,
        threshold=float(peaks[last + 1]),
        max_loss_db=max_loss_db,
        max_tile_loss_db=max_tile_loss_db,
        loss_db=float(loss[last]),
        tile_loss_db=float(max(worst[last], 0.0)),
        share=float(pixels[: last + 1].sum() / observations.measures["samples"].sum()),
    )


def _added_by_part(peaks: np.ndarray, observations: Observations) -> tuple[np.ndarray, np.ndarray]:
    """Return what each part adds when it is bypassed after all parts of its tile with lower peaks.

    A part's addition can include other parts: it may have been the last one that a rectangle was for.

    Args:
        peaks: (N, R * C).
        observations: of these N tiles.

    Returns:
        Added squared error and added bicubic samples, each (N, R * C).
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


def _running_sums(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return for each value (n,) the sum of all values of its group (n,) up to and including it."""
    order = np.argsort(group, kind="stable")
    sums = np.cumsum(values[order])
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    before = np.repeat(sums[starts] - values[order][starts], np.diff(starts, append=len(group)))
    result = np.empty_like(sums)
    result[order] = sums - before
    return result
