"""`cabm bench upscale IMAGE`: time tiles grouped by bits against one by one, and tiling itself."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cabm.bench.contenders import float_twin
from cabm.bench.rounds import interleaved, median_ratio
from cabm.checkpoints.find import find_model
from cabm.checkpoints.model_directory import load_model
from cabm.errors import InputError
from cabm.imaging.images import read_rgb8
from cabm.tables.table import EdgeToBitTable
from cabm.tiling.blending import blend_tiles
from cabm.tiling.edges import edge_score, edges_of_image
from cabm.tiling.plan import TilePlan, plan, split
from cabm.upscaling.engine_choice import choose_runner
from cabm.upscaling.runners import TileRunner
from cabm.upscaling.tiles import super_resolve, touches_border
from cabm.upscaling.upscaler import DEFAULT_OVERLAP

WHOLE_SIDE = 480
"""Side in pixels of the square that is also computed whole; a larger one may not fit in memory."""


@dataclass(frozen=True)
class TilingBench:
    """Medians over rounds; ratios are taken within rounds.

    Attributes:
        tiles: number of tiles of the image; none is bypassed.
        grouped: seconds to score all tiles at once, group them by bits and run them in batches.
        one_by_one: seconds to score, look up and run one tile after another with the same model.
        speedup: one_by_one / grouped.
        scoring_share: share of the grouped time spent on scores and look-up, 0..1.
        largest_difference: between the two results, in levels of 0..255.
        overlap_share: pixels in tiles / pixels of the square of side `WHOLE_SIDE`.
        tiling_cost: extra time of that square in tiles over whole, beyond the overlapped pixels, with the
            float model; 0.1 is 10 %.
    """

    tiles: int
    grouped: float
    one_by_one: float
    speedup: float
    scoring_share: float
    largest_difference: int
    overlap_share: float
    tiling_cost: float


def bench_tiling(image_file: Path, model: str | Path, *, rounds: int) -> TilingBench:
    """Time the simulated model with tiles grouped and one by one, and the float model in tiles and whole.

    Args:
        image_file: the image to upscale.
        model: a CABM model, as for `cabm.checkpoints.find.find_model`.
        rounds: timings of each, at least 1.

    Raises:
        InputError: no such image or model, or a model without a table.
    """
    loaded = load_model(find_model(model))
    if loaded.table is None:
        raise InputError(f"{model}: a {loaded.model.precision.kind} model has no table; give a cabm model")
    table = replace(loaded.table, bypass=None)  # compute every tile
    image = read_rgb8(image_file)
    chosen = choose_runner(loaded.model, engine="float", device="cpu")
    tile = loaded.table.tile
    stride = tile - DEFAULT_OVERLAP
    layout = plan(*image.shape[:2], tile, stride, size_multiple=loaded.model.size_multiple)
    options = {
        "tile": tile,
        "stride": stride,
        "size_multiple": loaded.model.size_multiple,
        "batch_size": chosen.batch_size(tile * tile),
    }
    plain = choose_runner(float_twin(loaded.model), engine="float", device="cpu").runner
    square = image[:WHOLE_SIDE, :WHOLE_SIDE]
    square_layout = plan(*square.shape[:2], tile, stride, size_multiple=loaded.model.size_multiple)
    runs: dict[str, Callable[[], Any]] = {
        "grouped": lambda: super_resolve(chosen.runner, image, table=table, **options).image,
        "one by one": lambda: _one_by_one(chosen.runner, image, table, layout),
        "scoring": lambda: table.lookup(edges_of_image(image, layout).scores),
        "whole": lambda: super_resolve(plain, square, **(options | {"tile": None})),
        "tiled": lambda: super_resolve(plain, square, **options),
    }
    results, seconds = interleaved(runs, rounds)
    difference = results["grouped"].astype(int) - results["one by one"]
    overlap = len(square_layout) * tile**2 / (square.shape[0] * square.shape[1])
    return TilingBench(
        tiles=len(layout),
        grouped=statistics.median(seconds["grouped"]),
        one_by_one=statistics.median(seconds["one by one"]),
        speedup=median_ratio(seconds["one by one"], seconds["grouped"]),
        scoring_share=median_ratio(seconds["scoring"], seconds["grouped"]),
        largest_difference=int(np.abs(difference).max()),
        overlap_share=overlap,
        tiling_cost=median_ratio(seconds["tiled"], seconds["whole"]) / overlap - 1,
    )


def format_tiling(result: TilingBench) -> str:
    """Return the result of `bench_tiling` as lines of text."""
    return "\n".join(
        [
            f"{result.tiles} tiles, simulated model:",
            f"  grouped by bits {result.grouped:8.2f} s; scores and look-up take"
            f" {100 * result.scoring_share:.2f} % of it",
            f"  one by one      {result.one_by_one:8.2f} s: {result.speedup:.2f} times as long,"
            f" largest difference {result.largest_difference} levels",
            f"float model, {WHOLE_SIDE} x {WHOLE_SIDE}: {100 * result.tiling_cost:+.1f} % time in tiles"
            f" over whole, beyond the {100 * (result.overlap_share - 1):.1f} % of overlapped pixels",
        ]
    )


def _one_by_one(
    runner: TileRunner, image: np.ndarray, table: EdgeToBitTable, layout: TilePlan
) -> np.ndarray:
    """Score, look up and run one tile after another, as the released code does."""
    pixels = image.transpose(2, 0, 1)
    upscaled = []
    for tile, border in zip(split(pixels, layout), touches_border(layout), strict=True):
        bits = table.lookup(edge_score(tile[None]))
        result, _ = runner(tile[None], bits, inside=not border)
        upscaled.append(np.rint(result[0]).clip(0, 255).astype(np.uint8))
    return blend_tiles(np.stack(upscaled), layout, runner.scale)
