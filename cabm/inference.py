"""Run a model over the tiles of an image: score, look up, group, run, merge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cabm.bicubic import enlarge_surrounded, surround, surrounded_tile
from cabm.blending import blend_tiles
from cabm.edge import edge_scores_of_image
from cabm.runners import ModelRunner, TileRunner
from cabm.table import EdgeToBitTable
from cabm.tiling import TilePlan, plan, split

__all__ = ["ModelRunner", "TileRunner", "TiledResult", "run_tiles", "super_resolve", "touches_border"]


_BICUBIC_BATCH = 4  # the work of a tile stays in the cache


@dataclass(frozen=True)
class TiledResult:
    """An enlarged image and what its tiles took.

    Attributes:
        image: (H*scale, W*scale, 3) uint8.
        plan: the tiles; one tile of the image's size where it was not cut.
        scores: (N,) edge score of each tile.
        bits: (N,L) bits of each tile, 0 where skipped; None for models without bits.
        by_table: whether a table gave the bits. Its rows of zeros are tiles that did not enter the network
            (bicubic); a selector's are tiles whose every residual branch was skipped.
    """

    image: np.ndarray
    plan: TilePlan
    scores: np.ndarray
    bits: np.ndarray | None
    by_table: bool = False

    @property
    def bypassed(self) -> np.ndarray:
        """(N,) which tiles did not enter the network."""
        if self.bits is None or not self.by_table:
            return np.zeros(len(self.plan), dtype=bool)
        return ~self.bits.any(axis=1)


@torch.inference_mode()
def run_tiles(
    runner: TileRunner,
    tiles: Tensor,
    bits: Tensor | None,
    *,
    batch_size: int,
    at_border: np.ndarray | None = None,
    dtype: torch.dtype = torch.uint8,
    surrounded: Callable[[int], Tensor] | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Enlarge tiles in batches of the same or similar bits; rows of zeros are bicubic.

    Args:
        runner: what enlarges a batch.
        tiles: (N,3,h,w) uint8 or float in 0..255.
        bits: (N,L) or None.
        batch_size: tiles in a batch at most.
        at_border: (N,) whether a tile touches the image's border; None: each does. The others may run by
            the runner's ``inner``.
        dtype: of the result: uint8 in 0..255, or uint16 in 0..65535.
        surrounded: gives a tile by its number with the pixels around it, (3,h+4,w+4), for bicubic ones;
            None: they are mirrored at the tile's border.
        progress: called with the number of tiles of each batch that is done.

    Returns:
        (N,3,h*s,w*s) of ``dtype`` in the order of ``tiles``, and the bits used (N,L) or None.
    """
    scale = runner.scale
    n, channels, height, width = tiles.shape
    shape = (n, channels, height * scale, width * scale)
    enlarged = np.empty(shape, np.uint8 if dtype == torch.uint8 else np.uint16)
    used: Tensor | None = None if bits is None else bits.clone()
    inner = getattr(runner, "inner", runner)
    inside = np.zeros(n, bool) if at_border is None or inner is runner else ~at_border
    for group in _groups(n, bits, inside):
        bypassed = bits is not None and not bool(bits[group[0]].any())
        run = inner if inside[group[0]] else runner
        for part in group.split(min(batch_size, _BICUBIC_BATCH) if bypassed else batch_size):
            if bypassed:
                around = surround(tiles[part]) if surrounded is None else _stacked(surrounded, part)
                batch = enlarge_surrounded(around.float(), scale)
            else:
                batch, chosen = run(tiles[part], None if bits is None else bits[part])
                if chosen is not None:
                    used = torch.zeros(n, chosen.shape[1], dtype=torch.int64) if used is None else used
                    used[part] = chosen.to("cpu", used.dtype)
            enlarged[part.numpy()] = _rounded(batch, 255 if dtype == torch.uint8 else 65535)
            if progress is not None:
                progress(len(part))
    return torch.from_numpy(enlarged), used


def _stacked(surrounded: Callable[[int], Tensor], numbers: Tensor) -> Tensor:
    return torch.stack([surrounded(number) for number in numbers.tolist()])


def _rounded(batch: Tensor, peak: int) -> np.ndarray:
    """0..255 as whole numbers in 0..peak; a level is 257 of them in 16 bits. Overwrites the batch."""
    if batch.dtype == torch.uint8:
        assert peak == 255
        return batch.numpy()
    if peak == 255:
        return batch.round_().clamp_(0, 255).to(torch.uint8).cpu().numpy()
    # PyTorch's casts to uint16 are not on every device
    return batch.mul_(peak / 255).round_().clamp_(0, peak).to(torch.int32).cpu().numpy()


def _groups(n: int, bits: Tensor | None, inside: np.ndarray) -> list[Tensor]:
    """Indices of the samples that run alike (computed or not, inside or at the border), sorted by bits.

    Rows of bits may meet in a batch: a batch cut at every new row would be mostly short ones, as tables
    have hundreds of rows.
    """
    keys = torch.from_numpy(inside).to(torch.int64)[:, None]
    if bits is None:
        return [group for group in (torch.where(keys[:, 0] == value)[0] for value in (0, 1)) if len(group)]
    computed = bits.any(dim=1, keepdim=True).to(torch.int64)
    kinds = (2 * computed + keys)[:, 0]
    _, row = torch.unique(bits, dim=0, return_inverse=True)
    order = torch.argsort(kinds * (n + 1) + row, stable=True)
    counts = torch.bincount(kinds).tolist()
    return [group for group in order.split(counts) if len(group)]


def touches_border(tile_plan: TilePlan) -> np.ndarray:
    """Tell of each tile whether it has a side on the image's border: (N,) bool."""
    y0, x0, y1, x1 = tile_plan.boxes.T
    return (y0 == 0) | (x0 == 0) | (y1 >= tile_plan.height) | (x1 >= tile_plan.width)


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
    """Enlarge an image that fits in memory, as `cabm.upscale.Upscaler` does large ones.

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
    pixels = torch.from_numpy(np.array(image.transpose(2, 0, 1)))
    scores = edge_scores_of_image(pixels, tile_plan).numpy()
    bits = None if table is None else torch.from_numpy(table.lookup(scores))
    enlarged, used = run_tiles(
        runner,
        split(pixels, tile_plan),
        bits,
        batch_size=batch_size,
        at_border=touches_border(tile_plan),
        surrounded=partial(surrounded_tile, surround(pixels), tile_plan),
    )
    merged = blend_tiles(enlarged.numpy(), tile_plan, runner.scale)
    chosen = None if used is None else used.numpy()
    return TiledResult(merged, tile_plan, scores, chosen, by_table=table is not None)
