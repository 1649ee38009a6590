"""Step 4: what a CADyQ model chooses for validation tiles, and the tables built from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cabm.data.store import PackedStore
from cabm.edge import edge_score
from cabm.inference import ModelRunner, run_tiles
from cabm.observations import Observations
from cabm.resize import upscale_batch
from cabm.table import EdgeToBitTable
from cabm.tiling import plan, split


def observe(
    runner: ModelRunner, store: PackedStore, *, patch: int, step: int, source_sha256: str
) -> Observations:
    """Run a model over the tiles of a store and record scores, bits and errors.

    The observations' measures are the sums of squared errors against the original of the pixels that each
    tile owns, less a border of ``scale`` pixels of the image as in the evaluation: of the network
    (``network_sse``) and of bicubic enlargement (``bicubic_sse``); and ``samples``, how many values.

    Args:
        runner: a CADyQ model.
        store: validation images.
        patch: side of a tile in low-resolution pixels.
        step: distance of neighbouring tiles.
        source_sha256: hash of the model's weights.
    """
    model, scale = runner.model, runner.scale
    scores, bits, images, network, bicubic, samples = [], [], [], [], [], []
    for index in range(len(store)):
        low, high = _tensor(store.lr(index)), _tensor(store.hr(index))
        height, width = low.shape[1:]
        tile_plan = plan(height, width, patch, step, size_multiple=model.size_multiple)
        tiles = split(low, tile_plan)
        enlarged, used = run_tiles(runner, tiles, None, batch_size=8)
        scores.append(edge_score(tiles).numpy())
        bits.append(used.numpy())
        images += [store.names[index]] * len(tiles)
        # what of a tile ends in the image, and is measured there: its border belongs to a neighbour
        owned = tile_plan.owned(scale).clip(scale, [[height * scale - scale, width * scale - scale] * 2])
        for tile, result, box, own in zip(tiles, enlarged, tile_plan.boxes * scale, owned, strict=True):
            (top, left), (y0, x0, y1, x1) = box[:2], own
            here = (slice(None), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
            target = high[:, y0:y1, x0:x1].float()
            plain = upscale_batch(tile[None].float(), scale)[0].clamp_(0, 255).round_()
            network.append(_squared_error(result[here].float(), target))
            bicubic.append(_squared_error(plain[here], target))
            samples.append(target.numel())
    measures = {"network_sse": network, "bicubic_sse": bicubic, "samples": samples}
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
        measures={name: np.array(values, np.float64) for name, values in measures.items()},
    )


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(image.transpose(2, 0, 1)))


def _squared_error(result: Tensor, target: Tensor) -> float:
    return (result - target).square().sum(dtype=torch.float64).item()


def bypass_threshold(
    observations: Observations, *, max_loss_db: float, max_tile_loss_db: float
) -> tuple[float, dict[str, Any]]:
    """Choose the edge score below which bicubic takes the network's place, by measurement.

    Tiles are taken in the order of their score. The threshold is the highest at which PSNR over all
    tiles together falls by no more than ``max_loss_db`` and no bypassed tile by more than
    ``max_tile_loss_db``.

    Returns:
        The threshold (0: nothing is bypassed) and what was measured there.
    """
    nothing = {
        "max_loss_db": max_loss_db,
        "max_tile_loss_db": max_tile_loss_db,
        "loss_db": 0.0,
        "share": 0.0,
    }
    if max_loss_db == 0:
        return 0.0, nothing
    order = np.argsort(observations.scores, kind="stable")
    scores = np.round(observations.scores[order], 2)  # as thresholds of tables are
    network = observations.measures["network_sse"][order]
    bicubic = observations.measures["bicubic_sse"][order]
    # one squared level per tile: a tile that both get right has no ratio
    tile_loss = 10 * np.log10((bicubic + 1) / (network + 1))
    total = network.sum()
    loss = 10 * np.log10((total + np.cumsum(bicubic - network) + 1) / (total + 1))
    allowed = np.maximum.accumulate(tile_loss) <= max_tile_loss_db
    # a threshold lies between two scores that differ; the last tile cannot be passed
    ends = np.flatnonzero((np.diff(scores) > 0) & allowed[:-1] & (loss[:-1] <= max_loss_db))
    if not len(ends):
        return 0.0, nothing
    last = ends[-1]
    measured = {"loss_db": float(loss[last]), "share": float((last + 1) / len(scores))}
    return float(scores[last + 1]), nothing | measured


def apply_bypass(
    table: EdgeToBitTable, observations: Observations, *, max_loss_db: float, max_tile_loss_db: float
) -> EdgeToBitTable:
    """Return the table with the bypass that `bypass_threshold` chooses."""
    threshold, info = bypass_threshold(
        observations, max_loss_db=max_loss_db, max_tile_loss_db=max_tile_loss_db
    )
    return table.with_bypass(threshold, info)
