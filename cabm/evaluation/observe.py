"""Step 4 of CABM: record the bits that a CADyQ model selects for validation tiles."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from cabm.data.store import PackedStore
from cabm.evaluation.bicubic import upscale_bicubic_batch
from cabm.tables.observations import Observations
from cabm.tiling.edges import edges_of_image
from cabm.tiling.plan import plan, split
from cabm.upscaling.tiles import TileRun
from cabm.upscaling.torch_runners import ModelRunner

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
        _observe_image(runner, _planes(store.lr(index)), _planes(store.hr(index)), tile, stride, part)
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
        layers=model.facts.layer_names,
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
    runner: ModelRunner, low: np.ndarray, high: np.ndarray, tile: int, stride: int, part: int
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
    measures = {"peaks": [_padded(peaks, side) for peaks in edges.peaks]}
    for pixels, result, box, inside in zip(
        tiles, run.upscaled, tile_plan.boxes * scale, measured, strict=True
    ):
        y0, x0, y1, x1 = inside
        top, left = box[:2]
        here = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        target = high[:, y0:y1, x0:x1].astype(np.float32)
        bicubic = _bicubic(pixels, scale)
        for name, values in (
            ("network_sse", np.square(result[:, *here] - target)),
            ("bicubic_sse", np.square(bicubic[:, *here] - target)),
            ("samples", np.ones_like(target)),
        ):
            over_tile = np.zeros(result.shape[1:])
            over_tile[here] = values.sum(axis=0, dtype=np.float64)
            measures.setdefault(name, []).append(_padded(_block_sums(over_tile, part * scale), side))
    stacked = {name: np.stack(values) for name, values in measures.items()}
    return _ObservedImage(edges.scores, run.used, stacked)


def _block_sums(values: np.ndarray, side: int) -> np.ndarray:
    """Sum a (H, W) array over squares; the last ones along an axis may be smaller."""
    rows = np.add.reduceat(values, np.arange(0, values.shape[0], side), axis=0)
    return np.add.reduceat(rows, np.arange(0, values.shape[1], side), axis=1)


def _padded(values: np.ndarray, side: int) -> np.ndarray:
    """Append zeros to a (R, C) array up to (side, side)."""
    return np.pad(values, [(0, side - length) for length in values.shape])


def _planes(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (3, H, W), copied from the memory map."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _bicubic(pixels: np.ndarray, scale: int) -> np.ndarray:
    """(3, h, w) uint8 -> (3, h * scale, w * scale) float32 whole numbers in 0..255."""
    upscaled = upscale_bicubic_batch(torch.from_numpy(pixels[None]).float(), scale)
    return upscaled[0].clamp_(0, 255).round_().numpy()
