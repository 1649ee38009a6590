"""Run a model over the tiles of an image: score, look up, group, run, merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from cabm.bicubic import lay_enlarged, surround, surrounded_tile
from cabm.blending import blend_tiles
from cabm.edge import edges_of_image
from cabm.parts import Region, TileParts, paste
from cabm.runners import ModelRunner, TileRunner
from cabm.table import EdgeToBitTable
from cabm.tiling import TilePlan, plan, split
from cabm.workers import in_order

__all__ = ["ModelRunner", "TileRunner", "TiledResult", "run_tiles", "super_resolve", "touches_border"]


@dataclass(frozen=True)
class TiledResult:
    """An enlarged image and what its tiles took.

    Attributes:
        image: (H*scale, W*scale, 3) uint8.
        plan: the tiles; one tile of the image's size where it was not cut.
        scores: (N,) edge score of each tile.
        bits: (N,L) bits of each tile, 0 where skipped; None for models without bits.
        parts: which parts of the tiles did not enter the network (bicubic); None: all did. A selector's
            rows of zeros are tiles whose every residual branch was skipped, and did.
    """

    image: np.ndarray
    plan: TilePlan
    scores: np.ndarray
    bits: np.ndarray | None
    parts: TileParts | None = None

    @property
    def bypassed(self) -> np.ndarray:
        """(N,) share 0..1 of each tile that did not come from the network."""
        return np.zeros(len(self.plan)) if self.parts is None else self.parts.share

    @property
    def work(self) -> np.ndarray:
        """(N,) share 0..1 of each tile that the network computed; margins count."""
        return np.ones(len(self.plan)) if self.parts is None else self.parts.work


@torch.inference_mode()
def run_tiles(
    runner: TileRunner,
    tiles: Tensor,
    bits: Tensor | None,
    *,
    batch_size: int,
    parts: TileParts | None = None,
    at_border: np.ndarray | None = None,
    dtype: torch.dtype = torch.uint8,
    surrounded: Callable[[int], Tensor] | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Enlarge tiles in batches of the same shape and of the same or similar bits.

    Args:
        runner: what enlarges a batch; or by its ``one_by_one`` (`cabm.engine.IntegerModel`) the rectangles
            of each tile in turn, several tiles at once.
        tiles: (N,3,h,w) uint8 or float in 0..255.
        bits: (N,L) or None.
        batch_size: tiles in a batch at most; of rectangles of tiles, as many as have their pixels. Not for
            a runner that goes ``one_by_one``.
        parts: which parts of the tiles are bicubic; None: tiles whose bits are all 0.
        at_border: (N,) whether a tile touches the image's border; None: each does. The others may run by
            the runner's ``inner``.
        dtype: of the result: uint8 in 0..255, or uint16 in 0..65535.
        surrounded: gives a tile by its number with the pixels around it, (3,h+4,w+4), for bicubic ones;
            None: they are mirrored at the tile's border.
        progress: called with the number of tiles that are done.

    Returns:
        (N,3,h*s,w*s) of ``dtype`` in the order of ``tiles``, and the bits used (N,L) or None.
    """
    scale = runner.scale
    n, channels, height, width = tiles.shape
    if parts is None:
        none = np.zeros(n, bool) if bits is None else ~bits.any(dim=1).numpy()
        parts = TileParts.of_tiles(height, width, none)
    # colours lie side by side, as in an image and in what networks give back
    shape = (n, height * scale, width * scale, channels)
    enlarged = np.empty(shape, np.uint8 if dtype == torch.uint8 else np.uint16).transpose(0, 3, 1, 2)
    peak = np.iinfo(enlarged.dtype).max
    share = parts.share

    def lay_bicubic(number: int) -> None:
        around = surround(tiles[number]) if surrounded is None else surrounded(number)
        lay_enlarged(enlarged[number], around, scale)

    one_by_one = getattr(runner, "one_by_one", None)
    if one_by_one is not None:
        entering = np.flatnonzero(parts.entered)
        place = {number: index for index, number in enumerate(entering.tolist())}
        exact = torch.uint8 if tiles.dtype == torch.uint8 else torch.float32
        enlarge = one_by_one(len(entering), None if bits is None else bits[entering], dtype=exact)

        def lay(number: int) -> None:
            if share[number]:
                lay_bicubic(number)
            for region in parts.regions[number]:
                y0, x0, y1, x1 = region.outer
                piece = enlarge(place[number], tiles[number, :, y0:y1, x0:x1])
                paste(enlarged[number], _rounded(piece, peak), region, scale)

        # tiles of much work first, so that all threads end together
        order = np.argsort(-parts.work, kind="stable").tolist()
        for _ in in_order(torch.inference_mode()(lambda index: lay(order[index])), n):
            _report(progress, 1)
        return torch.from_numpy(enlarged), bits

    open_regions = [len(regions) for regions in parts.regions]
    for number in np.flatnonzero(share).tolist():
        lay_bicubic(number)
        _report(progress, int(not open_regions[number]))
    used: Tensor | None = None if bits is None else bits.clone()
    inner = getattr(runner, "inner", runner)
    inside = np.zeros(n, bool) if at_border is None or inner is runner else ~at_border
    for batch in _batches(parts.regions, bits, inside, batch_size * height * width):
        numbers = torch.tensor([number for number, _ in batch])
        pieces = [tiles[number, :, box.y0 : box.y1, box.x0 : box.x1] for number, (_, box) in batch]
        rows = None if bits is None else bits[numbers]
        results, chosen = (inner if inside[batch[0][0]] else runner)(torch.stack(pieces), rows)
        if chosen is not None:
            used = torch.zeros(n, chosen.shape[1], dtype=torch.int64) if used is None else used
            used[numbers] = chosen.to("cpu", used.dtype)
        for (number, region), values in zip(batch, _rounded(results, peak), strict=True):
            paste(enlarged[number], values, region, scale)
            open_regions[number] -= 1
            _report(progress, int(not open_regions[number]))
    return torch.from_numpy(enlarged), used


def _report(progress: Callable[[int], object] | None, tiles: int) -> None:
    if progress is not None and tiles:
        progress(tiles)


def _rounded(batch: Tensor, peak: int) -> np.ndarray:
    """0..255 as whole numbers in 0..peak; a level is 257 of them in 16 bits. Overwrites the batch."""
    if batch.dtype == torch.uint8:
        assert peak == 255
        return batch.numpy()
    if peak == 255:
        return batch.round_().clamp_(0, 255).to(torch.uint8).cpu().numpy()
    # PyTorch's casts to uint16 are not on every device
    return batch.mul_(peak / 255).round_().clamp_(0, peak).to(torch.int32).cpu().numpy()


def _batches(
    regions: list[list[Region]], bits: Tensor | None, inside: np.ndarray, pixels: int
) -> Iterator[list[tuple[int, Region]]]:
    """Yield regions with their tile's number that run together, large ones before small ones.

    Those of a batch are of one shape, all inside the image or all at its border, and have no more than that
    many pixels together, but for one that has more by itself.
    Rows of bits may meet in a batch: a batch cut at every new row would be mostly short ones, as tables
    have hundreds of rows.
    """
    row = [0] * len(regions)
    if bits is not None and len(bits):
        row = torch.unique(bits, dim=0, return_inverse=True)[1].tolist()

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
    edges = edges_of_image(pixels, tile_plan, None if table is None else table.part)
    bits, parts = (None, None) if table is None else table.assign(edges, tile_plan)
    enlarged, used = run_tiles(
        runner,
        split(pixels, tile_plan),
        None if bits is None else torch.from_numpy(bits),
        batch_size=batch_size,
        parts=parts,
        at_border=touches_border(tile_plan),
        surrounded=partial(surrounded_tile, surround(pixels), tile_plan),
    )
    merged = blend_tiles(enlarged.numpy(), tile_plan, runner.scale)
    chosen = None if used is None else used.numpy()
    return TiledResult(merged, tile_plan, edges.scores.numpy(), chosen, parts)
