"""Step 4 of CABM: record the bits that a CADyQ model selects for validation tiles."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cabm.data.store import PackedStore
from cabm.imaging.bicubic import upscale_bicubic_batch
from cabm.tables.observations import Observations
from cabm.tiling.edges import edges_of_image
from cabm.tiling.plan import plan, split
from cabm.upscaling.runners import ModelRunner
from cabm.upscaling.tiles import TileRun

_BATCH_SIZE = 8


def observe(
    runner: ModelRunner, store: PackedStore, *, tile: int, stride: int, part: int, source_sha256: str
) -> Observations:
    """Run a model over the tiles of a store and record scores, bits, edge peaks and errors.

    The measures of each part of a tile are its edge peak (``peaks``), the sums of squared errors of the
    network (``network_sse``) and of bicubic upscaling (``bicubic_sse``) against the original, and the
    number of values summed (``samples``). Errors cover the pixels that belong to the tile, without the
    border of ``scale`` pixels that the evaluation leaves out.

    Args:
        runner: runs a CADyQ model.
        store: validation images.
        tile: side of a tile in low-resolution pixels.
        stride: distance between neighbouring tiles.
        part: side of the parts of a tile.
        source_sha256: hash of the model's weights.
    """
    model = runner.model
    images = [
        _observe_image(runner, _tensor(store.lr(index)), _tensor(store.hr(index)), tile, stride, part)
        for index in range(len(store))
    ]
    names = [
        name for name, image in zip(store.names, images, strict=True) for _ in range(len(image.scores))
    ]
    return Observations(
        scores=np.concatenate([image.scores for image in images]),
        bits=np.concatenate([image.bits for image in images]),
        images=np.array(names),
        backbone=model.name,
        scale=runner.scale,
        search_space=model.precision.search_space,
        layers=model.layer_names,
        tile=tile,
        stride=stride,
        source_sha256=source_sha256,
        part=part,
        measures={
            name: np.concatenate([image.measures[name] for image in images]) for name in images[0].measures
        },
    )


class _ObservedImage(NamedTuple):
    """Scores (N,), bits (N, L) and measures (N, R, C) of the tiles of one image."""

    scores: np.ndarray
    bits: np.ndarray
    measures: dict[str, np.ndarray]


def _observe_image(
    runner: ModelRunner, low: Tensor, high: Tensor, tile: int, stride: int, part: int
) -> _ObservedImage:
    """Observe the tiles of one image, (3, h, w) and (3, h * scale, w * scale) uint8."""
    scale = runner.scale
    height, width = low.shape[1:]
    tile_plan = plan(height, width, tile, stride, size_multiple=runner.model.size_multiple)
    tiles = split(low, tile_plan)
    run = TileRun(runner, tiles, None, batch_size=_BATCH_SIZE).complete()
    edges = edges_of_image(low, tile_plan, part)
    border = [[height * scale - scale, width * scale - scale] * 2]
    measured = tile_plan.owned(scale).clip(scale, border)
    side = -(-tile // part)  # parts along a whole tile; smaller tiles are filled up with zeros
    measures = {"peaks": [_padded(peaks, side) for peaks in edges.peaks.numpy()]}
    upscaled = torch.from_numpy(run.upscaled)
    for pixels, result, box, inside in zip(tiles, upscaled, tile_plan.boxes * scale, measured, strict=True):
        y0, x0, y1, x1 = inside
        top, left = box[:2]
        here = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        target = high[:, y0:y1, x0:x1].float()
        bicubic = upscale_bicubic_batch(pixels[None].float(), scale)[0].clamp_(0, 255).round_()
        for name, values in (
            ("network_sse", (result[:, *here].float() - target).square()),
            ("bicubic_sse", (bicubic[:, *here] - target).square()),
            ("samples", torch.ones_like(target)),
        ):
            over_tile = np.zeros(result.shape[1:])
            over_tile[here] = values.sum(dim=0, dtype=torch.float64)
            measures.setdefault(name, []).append(_padded(_block_sums(over_tile, part * scale), side))
    stacked = {name: np.stack(values) for name, values in measures.items()}
    return _ObservedImage(edges.scores.numpy(), run.used.numpy(), stacked)


def _block_sums(values: np.ndarray, side: int) -> np.ndarray:
    """Sum a (H, W) array over squares; the last ones along an axis may be smaller."""
    rows = np.add.reduceat(values, np.arange(0, values.shape[0], side), axis=0)
    return np.add.reduceat(rows, np.arange(0, values.shape[1], side), axis=1)


def _padded(values: np.ndarray, side: int) -> np.ndarray:
    """Append zeros to a (R, C) array up to (side, side)."""
    return np.pad(values, [(0, side - length) for length in values.shape])


def _tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) -> (3, H, W), copied from the memory map."""
    return torch.from_numpy(np.array(image.transpose(2, 0, 1)))
