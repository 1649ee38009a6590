"""Step 4: what a CADyQ model chooses for validation tiles, and the tables built from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cabm.data.store import PackedStore
from cabm.edge import edges_of_image
from cabm.errors import InputError
from cabm.inference import ModelRunner, TileRun
from cabm.observations import SCORE_DECIMALS, Observations
from cabm.parts import TileParts
from cabm.resize import upscale_batch
from cabm.table import EdgeToBitTable
from cabm.tiling import plan, split

_TOGETHER = 1 << 22  # parts, in all steps of bypassing one after another, that are looked at together


def observe(
    runner: ModelRunner, store: PackedStore, *, patch: int, step: int, part: int, source_sha256: str
) -> Observations:
    """Run a model over the tiles of a store and record scores, bits, edge peaks and errors.

    The observations' measures are the edge peaks of the parts of each tile (``peaks``), and the sums of
    squared errors against the original of the pixels that a tile owns in each part, less a border of
    ``scale`` pixels of the image as in the evaluation: of the network (``network_sse``) and of bicubic
    enlargement (``bicubic_sse``); and ``samples``, how many values.

    Args:
        runner: a CADyQ model.
        store: validation images.
        patch: side of a tile in low-resolution pixels.
        step: distance of neighbouring tiles.
        part: side of the parts of a tile.
        source_sha256: hash of the model's weights.
    """
    model, scale = runner.model, runner.scale
    scores, bits, images = [], [], []
    measures: dict[str, list[np.ndarray]] = {
        name: [] for name in ("peaks", "network_sse", "bicubic_sse", "samples")
    }
    side = -(-patch // part)
    for index in range(len(store)):
        low, high = _tensor(store.lr(index)), _tensor(store.hr(index))
        height, width = low.shape[1:]
        tile_plan = plan(height, width, patch, step, size_multiple=model.size_multiple)
        tiles = split(low, tile_plan)
        run = TileRun(runner, tiles, None, batch_size=8).complete()
        edges = edges_of_image(low, tile_plan, part)
        scores.append(edges.scores.numpy())
        bits.append(run.used.numpy())
        images += [store.names[index]] * len(tiles)
        measures["peaks"] += [_padded(peaks, side) for peaks in edges.peaks.numpy()]
        # what of a tile ends in the image, and is measured there: its border belongs to a neighbour
        owned = tile_plan.owned(scale).clip(scale, [[height * scale - scale, width * scale - scale] * 2])
        enlarged = torch.from_numpy(run.enlarged)
        for tile, result, box, own in zip(tiles, enlarged, tile_plan.boxes * scale, owned, strict=True):
            (top, left), (y0, x0, y1, x1) = box[:2], own
            here = (slice(None), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
            target = high[:, y0:y1, x0:x1].float()
            plain = upscale_batch(tile[None].float(), scale)[0].clamp_(0, 255).round_()
            for name, errors in (
                ("network_sse", (result[here].float() - target).square()),
                ("bicubic_sse", (plain[here] - target).square()),
                ("samples", torch.ones_like(target)),
            ):
                over_tile = np.zeros(result.shape[1:])
                over_tile[here[1:]] = errors.sum(dim=0, dtype=torch.float64)
                measures[name].append(_padded(_sums(over_tile, part * scale), side))
    return Observations(
        scores=np.concatenate(scores),
        bits=np.concatenate(bits),
        images=np.array(images),
        backbone=model.name,
        scale=scale,
        search_space=model.precision.search_space,
        layers=model.layer_names,
        patch=patch,
        step=step,
        source_sha256=source_sha256,
        part=part,
        measures={name: np.stack(values) for name, values in measures.items()},
    )


def _sums(values: np.ndarray, side: int) -> np.ndarray:
    """Sums over squares of a (H, W) array; those at its lower and right ends may be smaller."""
    rows = np.add.reduceat(values, np.arange(0, values.shape[0], side), axis=0)
    return np.add.reduceat(rows, np.arange(0, values.shape[1], side), axis=1)


def _padded(values: np.ndarray, side: int) -> np.ndarray:
    return np.pad(values, [(0, side - length) for length in values.shape])


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(image.transpose(2, 0, 1)))


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
    part, patch, measures = observations.part, observations.patch, observations.measures
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
        left_out = TileParts(part, patch, patch, bypassed.reshape(shape)).left_out
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
