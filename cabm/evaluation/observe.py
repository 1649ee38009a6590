"""Step 4: what a CADyQ model chooses for validation tiles, and the tables built from it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cabm.data.store import PackedStore
from cabm.imaging.resize import upscale_bicubic_batch
from cabm.tables.observations import Observations
from cabm.tiling.edges import edges_of_image
from cabm.tiling.plan import plan, split
from cabm.upscaling.runners import ModelRunner
from cabm.upscaling.tiles import TileRun


def observe(
    runner: ModelRunner, store: PackedStore, *, tile: int, stride: int, part: int, source_sha256: str
) -> Observations:
    """Run a model over the tiles of a store and record scores, bits, edge peaks and errors.

    The observations' measures are the edge peaks of the parts of each tile (``peaks``), and the sums of
    squared errors against the original of the pixels that a tile owns in each part, less a border of
    ``scale`` pixels of the image as in the evaluation: of the network (``network_sse``) and of bicubic
    upscaling (``bicubic_sse``); and ``samples``, how many values.

    Args:
        runner: a CADyQ model.
        store: validation images.
        tile: side of a tile in low-resolution pixels.
        stride: distance of neighbouring tiles.
        part: side of the parts of a tile.
        source_sha256: hash of the model's weights.
    """
    model, scale = runner.model, runner.scale
    scores, bits, images = [], [], []
    measures: dict[str, list[np.ndarray]] = {
        name: [] for name in ("peaks", "network_sse", "bicubic_sse", "samples")
    }
    side = -(-tile // part)
    for index in range(len(store)):
        low, high = _tensor(store.lr(index)), _tensor(store.hr(index))
        height, width = low.shape[1:]
        tile_plan = plan(height, width, tile, stride, size_multiple=model.size_multiple)
        tiles = split(low, tile_plan)
        run = TileRun(runner, tiles, None, batch_size=8).complete()
        edges = edges_of_image(low, tile_plan, part)
        scores.append(edges.scores.numpy())
        bits.append(run.used.numpy())
        images += [store.names[index]] * len(tiles)
        measures["peaks"] += [_padded(peaks, side) for peaks in edges.peaks.numpy()]
        # what of a tile ends in the image, and is measured there: its border belongs to a neighbour
        owned = tile_plan.owned(scale).clip(scale, [[height * scale - scale, width * scale - scale] * 2])
        upscaled = torch.from_numpy(run.upscaled)
        for pixels, result, box, own in zip(tiles, upscaled, tile_plan.boxes * scale, owned, strict=True):
            (top, left), (y0, x0, y1, x1) = box[:2], own
            here = (slice(None), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
            target = high[:, y0:y1, x0:x1].float()
            plain = upscale_bicubic_batch(pixels[None].float(), scale)[0].clamp_(0, 255).round_()
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
        tile=tile,
        stride=stride,
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
