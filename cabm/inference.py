"""Run a model over the tiles of an image: score, look up, group, run, merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cabm.edge import edge_score
from cabm.models.base import Backbone
from cabm.resize import upscale_batch
from cabm.table import EdgeToBitTable
from cabm.tiling import TilePlan, merge, plan, split


@dataclass(frozen=True)
class TiledResult:
    """An enlarged image and what its tiles took.

    Attributes:
        image: (H*scale, W*scale, 3) uint8.
        plan: the tiles; one tile of the image's size where it was not cut.
        scores: (N,) edge score of each tile.
        bits: (N,L) bits of each tile; zeros: not computed (bicubic); None for models without bits.
    """

    image: np.ndarray
    plan: TilePlan
    scores: np.ndarray
    bits: np.ndarray | None


class TileRunner(Protocol):
    """Something that enlarges a batch of tiles: a simulated model or the integer engine."""

    scale: int

    def __call__(self, tiles: Tensor, bits: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Enlarge (n,3,h,w) in 0..255 with bits (n,L); return (n,3,h*s,w*s) and the bits used."""
        ...


class ModelRunner:
    """Runs a backbone in evaluation mode, without gradients.

    Args:
        model: the backbone.
        autocast: type that convolutions compute in; None: float32.
    """

    def __init__(self, model: Backbone, autocast: torch.dtype | None = None) -> None:
        self.model = model.eval()
        self.scale = model.scale
        self.autocast = autocast

    @torch.inference_mode()
    def __call__(self, tiles: Tensor, bits: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Enlarge a batch; see `TileRunner`."""
        x = tiles.float().contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
            output = self.model(x, bits)
        return output.sr.float(), output.bits


def run_tiles(
    runner: TileRunner, tiles: Tensor, bits: Tensor | None, *, batch_size: int
) -> tuple[Tensor, Tensor | None]:
    """Enlarge tiles in batches that share a row of bits; rows of zeros are bicubic.

    Args:
        runner: what enlarges a batch.
        tiles: (N,3,h,w) uint8 or float in 0..255.
        bits: (N,L) or None.
        batch_size: tiles in a batch at most.

    Returns:
        (N,3,h*s,w*s) uint8 in the order of ``tiles``, and the bits used (N,L) or None.
    """
    scale = runner.scale
    n, channels, height, width = tiles.shape
    enlarged = torch.empty(n, channels, height * scale, width * scale, dtype=torch.uint8)
    used: Tensor | None = None if bits is None else bits.clone()
    for group in _groups(n, bits):
        bypassed = bits is not None and not bool(bits[group[0]].any())
        for part in group.split(batch_size):
            if bypassed:
                batch = upscale_batch(tiles[part].float(), scale)
            else:
                batch, chosen = runner(tiles[part], None if bits is None else bits[part])
                if chosen is not None:
                    used = chosen.new_zeros(n, chosen.shape[1]) if used is None else used
                    used[part] = chosen
            enlarged[part] = batch.clamp(0, 255).round().to(torch.uint8)
    return enlarged, used


def _groups(n: int, bits: Tensor | None) -> list[Tensor]:
    """Indices of the samples that share a row of bits."""
    if bits is None:
        return [torch.arange(n)]
    _, inverse = torch.unique(bits, dim=0, return_inverse=True)
    order = torch.argsort(inverse, stable=True)
    return list(order.split(torch.bincount(inverse).tolist()))


def super_resolve(
    runner: TileRunner,
    image: np.ndarray,
    *,
    table: EdgeToBitTable | None = None,
    tile: int | None = 96,
    step: int = 94,
    size_multiple: int = 1,
    batch_size: int = 8,
) -> TiledResult:
    """Enlarge an image that fits in memory.

    Args:
        runner: what enlarges a batch of tiles.
        image: (H,W,3) uint8.
        table: gives a tile's bits from its edge score; for CABM models.
        tile: side of a tile in pixels; None: the whole image at once.
        step: distance of neighbouring tiles.
        size_multiple: what the backbone needs.
        batch_size: tiles in a batch at most.
    """
    height, width = image.shape[:2]
    if tile is None:
        tile = step = max(height, width) + -max(height, width) % size_multiple
    tile_plan = plan(height, width, tile, step, size_multiple=size_multiple)
    tiles = split(torch.from_numpy(np.array(image.transpose(2, 0, 1))), tile_plan)
    scores = edge_score(tiles).numpy()
    bits = None if table is None else torch.from_numpy(table.lookup(scores))
    enlarged, used = run_tiles(runner, tiles, bits, batch_size=batch_size)
    merged = merge(enlarged, tile_plan, runner.scale).permute(1, 2, 0).numpy()
    return TiledResult(merged, tile_plan, scores, None if used is None else used.numpy())
