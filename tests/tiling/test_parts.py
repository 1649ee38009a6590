"""Parts of tiles that are bypassed, and the rectangles that are not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cabm.errors import InputError
from cabm.imaging.bicubic import surround, upscale_surrounded
from cabm.imaging.raster import array_raster
from cabm.tables.bypass import Bypass, choose_bypass
from cabm.tables.observations import Observations
from cabm.tables.table import EdgeToBitTable
from cabm.tiling.edges import edges_of_image
from cabm.tiling.parts import MARGIN, Box, Region, TileParts, paste
from cabm.tiling.plan import plan
from cabm.upscaling.runners import TileRunner
from cabm.upscaling.streaming import upscale
from cabm.upscaling.tiles import TileRun, super_resolve

SCALE = 2


@st.composite
def tile_parts(draw) -> TileParts:
    side = draw(st.sampled_from([8, 16]))
    height, width = draw(st.integers(1, 56)), draw(st.integers(1, 56))
    grid = (draw(st.integers(1, 3)), -(-height // side), -(-width // side))
    return TileParts(side, height, width, draw(arrays(bool, grid)))


def contains(outer: Box, inner: Box) -> bool:
    rows = outer.y0 <= inner.y0 and inner.y1 <= outer.y1
    return rows and outer.x0 <= inner.x0 and inner.x1 <= outer.x1


@settings(deadline=None)
@given(tile_parts())
def test_every_part_that_enters_lies_in_one_rectangle_and_the_rest_is_left_out(parts):
    for number, (regions, left_out) in enumerate(zip(parts.regions, parts.boxes_left_out, strict=True)):
        times = np.zeros((parts.height, parts.width), int)
        for region in regions:
            assert contains(region.outer, region.core)
            assert contains(Box(0, 0, parts.height, parts.width), region.outer)
            times[region.core.y0 : region.core.y1, region.core.x0 : region.core.x1] += 1
        for box in left_out:
            times[box.y0 : box.y1, box.x0 : box.x1] += 1
        assert (times == 1).all()
        bypassed = parts.bypassed[number]
        pixels = np.kron(bypassed, np.ones((parts.side, parts.side), bool))[: parts.height, : parts.width]
        out = np.zeros_like(pixels)
        for box in left_out:
            out[box.y0 : box.y1, box.x0 : box.x1] = True
        assert not (out & ~pixels).any(), "a part that should enter the network does not"
        assert parts.share[number] == pytest.approx(out.mean())
    assert (parts.work <= 1).all()
    assert (parts.work + parts.share >= 1 - 1e-12).all()


@settings(deadline=None, max_examples=50)
@given(arrays(bool, (4, 3)))
def test_no_other_cutting_of_a_tile_is_less_work(bypassed):
    side, height, width = 24, 96, 70
    edges = ([0, 24, 48, 72, 96], [0, 24, 48, 70])

    def side_of(start: int, end: int, length: int) -> int:
        return min(end + MARGIN, length) - max(start - MARGIN, 0)

    @cache
    def least(y0: int, x0: int, y1: int, x1: int) -> int:
        if bypassed[y0:y1, x0:x1].all():
            return 0
        h = side_of(edges[0][y0], edges[0][y1], height)
        w = side_of(edges[1][x0], edges[1][x1], width)
        ways = [h * w + 400]
        ways += [least(y0, x0, y, x1) + least(y, x0, y1, x1) for y in range(y0 + 1, y1)]
        ways += [least(y0, x0, y1, x) + least(y0, x, y1, x1) for x in range(x0 + 1, x1)]
        return min(ways)

    (regions,) = TileParts(side, height, width, bypassed[None]).regions
    assert sum(region.outer.area + 400 for region in regions) == least(0, 0, 4, 3)


def test_a_rectangle_replaces_its_core_and_fades_over_its_margin():
    region = Region(Box(8, 0, 16, 8), Box(5, 0, 19, 11))
    tile = np.full((3, 24 * SCALE, 16 * SCALE), 100, np.uint8)
    paste(tile, np.full((3, 14 * SCALE, 11 * SCALE), 200, np.uint8), region, SCALE)
    assert (tile[:, 16:32, :16] == 200).all()
    assert (tile[:, : 6 * SCALE] == 100).all() and (tile[:, :, 10 * SCALE :] == 100).all()
    down, across = tile[0, :, 0].astype(int), tile[0, 20].astype(int)
    assert (np.diff(down[:32]) >= 0).all() and (np.diff(down[16:]) <= 0).all()
    assert np.abs(np.diff(down)).max() <= 26 and np.abs(np.diff(across)).max() <= 26
    assert across[0] == 200, "there is nothing to fade into at the tile's border"


@settings(deadline=None)
@given(tile_parts(), st.sampled_from([np.uint8, np.uint16]))
def test_rectangles_that_agree_with_what_is_there_change_nothing(parts, dtype):
    tile = np.random.default_rng(0).integers(
        0, np.iinfo(dtype).max, (3, parts.height * SCALE, parts.width * SCALE), dtype
    )
    for region in parts.regions[0]:
        box = region.outer.scaled(SCALE)
        before = tile.copy()
        paste(tile, tile[:, box.y0 : box.y1, box.x0 : box.x1].copy(), region, SCALE)
        np.testing.assert_array_equal(tile, before)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(4, 60), st.sampled_from([8, 24]))
def test_edge_peaks_by_their_definition(height, width, part):
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    tile_plan = plan(height, width, 40, 30)
    edges = edges_of_image(image, tile_plan, part)
    gray = (image.astype(np.int64) @ [9798, 19235, 3735] + (1 << 14)) >> 15
    for tile, (y0, x0, y1, x1) in enumerate(tile_plan.boxes):
        pad = [(1, 1) if length > 1 else (0, 0) for length in (y1 - y0, x1 - x0)]
        luma = np.pad(gray[y0:y1, x0:x1], pad, mode="reflect")
        luma = np.pad(luma, [(0, 0) if p[0] else (1, 1) for p in pad], mode="edge")
        laplacian = luma[:-2, :-2] + luma[:-2, 2:] + luma[2:, :-2] + luma[2:, 2:] - 4 * luma[1:-1, 1:-1]
        laplacian = np.minimum(np.abs(2 * laplacian), 255).astype(np.float64)
        assert edges.scores[tile] == pytest.approx(laplacian.mean())
        for row, column in np.ndindex(edges.peaks[tile].shape):
            ys, xs = (slice(n * part, (n + 1) * part) for n in (row, column))
            inside = laplacian[ys, xs]
            blocks = [
                inside[y : y + 8, x : x + 8]
                for y in range(0, inside.shape[0], 8)
                for x in range(0, inside.shape[1], 8)
            ]
            assert edges.peaks[tile, row, column] == pytest.approx(
                max(np.sqrt((block**2).mean()) for block in blocks)
            )


def test_parts_of_another_size_are_refused():
    with pytest.raises(ValueError, match="parts of 12 pixels: choose a multiple of 8"):
        edges_of_image(np.zeros((20, 20, 3), np.uint8), plan(20, 20, 20, 20), 12)


class Inverted(TileRunner):
    """Stands for a network: every pixel by itself, far from bicubic."""

    scale = SCALE

    def __init__(self) -> None:
        self.pixels = 0

    def __call__(self, tiles, bits, *, inside=False):
        self.pixels += tiles[:, 0].numel()
        big = tiles.float().repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
        return 255 - big, bits


def half_smooth(height: int, width: int) -> np.ndarray:
    """Flat on the left, noise on the right."""
    image = np.full((height, width, 3), 90, np.uint8)
    image[:, width // 2 :] = np.random.default_rng(0).integers(0, 256, (height, width - width // 2, 3))
    return image


def part_table(threshold: float = 5.0) -> EdgeToBitTable:
    return EdgeToBitTable(
        backbone="edsr",
        scale=SCALE,
        search_space=(4, 6, 8),
        layers=("a", "b"),
        tile=48,
        stride=42,
        strategy="lowest",
        thresholds=[0.0, 20.0],
        rows=[[4, 4], [6, 8]],
        bypass=Bypass(part=8, threshold=threshold, max_loss_db=0.01),
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_smooth_parts_are_bicubic_and_the_others_the_networks(dtype):
    tile = torch.from_numpy(half_smooth(48, 48).transpose(2, 0, 1).copy())[None]
    bypassed = np.zeros((1, 6, 6), bool)
    bypassed[:, :, :3] = True
    runner = Inverted()
    run = TileRun(
        runner,
        tile,
        torch.tensor([[4, 8]]),
        batch_size=4,
        parts=TileParts(8, 48, 48, bypassed),
        dtype=dtype,
    )
    assert list(run) == [0]
    level = 1 if dtype == torch.uint8 else 257
    network = Inverted()(tile, None)[0][0]
    bicubic = upscale_surrounded(surround(tile).float(), SCALE)[0].clamp(0, 255)
    found = torch.from_numpy(run.upscaled[0].astype(np.float64)) / level
    assert torch.equal(found[:, :, 48:].float(), network[:, :, 48:])
    far = (24 - MARGIN + 1) * SCALE
    assert (found[:, :, :far] - bicubic[:, :, :far]).abs().max() <= 0.5
    assert runner.pixels == 48 * (24 + MARGIN)
    assert run.used.tolist() == [[4, 8]]


def test_a_table_says_which_parts_enter_and_gives_no_bits_to_tiles_without_any():
    image = half_smooth(48, 150)
    table = part_table()
    tile_plan = plan(48, 150, 48, 42)
    bits, parts = table.assign(edges_of_image(image, tile_plan, table.part), tile_plan)
    assert parts.bypassed[0].all() and bits[0].tolist() == [0, 0]
    assert not parts.bypassed[-1].any() and bits[-1].tolist() == [6, 8]
    mixed = parts.entered & parts.bypassed.any(axis=(1, 2))
    assert mixed.any() and bits[mixed].all()
    assert 0 < parts.share[mixed][0] < 1


def test_streams_and_images_in_memory_are_upscaled_alike():
    image, table = half_smooth(130, 150), part_table()
    runner = Inverted()
    whole = super_resolve(runner, image, table=table, tile=48, stride=42)
    rows = upscale(array_raster(image), Inverted(), plan(130, 150, 48, 42), table=table)
    np.testing.assert_array_equal(np.concatenate(list(rows)), whole.image)
    assert 0.3 < whole.bypassed.mean() < 0.6
    assert runner.pixels == pytest.approx(whole.work.sum() * 48 * 48)
    assert (whole.image[:, : 2 * 60] == 90).all(), "flat parts are bicubic"


def test_rows_come_while_the_network_goes_on():
    runner = Inverted()
    rows = upscale(array_raster(half_smooth(400, 60)), runner, plan(400, 60, 48, 42))
    height, so_far = len(next(rows)), runner.pixels
    assert height + sum(map(len, rows)) == 400 * SCALE
    assert so_far < runner.pixels / 2


def test_a_table_with_parts_is_kept_in_its_file_and_checked(tmp_path):
    table = part_table()
    table.save(tmp_path / "table.json")
    loaded = EdgeToBitTable.load(tmp_path / "table.json")
    assert loaded == table and loaded.part == 8
    assert replace(table, bypass=None).part is None
    text = (tmp_path / "table.json").read_text()
    for wrong in ('"part": 12', '"part": "8"', '"part": 0', '"part": 8.0', '"part": true'):
        (tmp_path / "table.json").write_text(text.replace('"part": 8', wrong))
        with pytest.raises(InputError, match=r"table\.json: bypass\.part: "):
            EdgeToBitTable.load(tmp_path / "table.json")
    for wrong in ('"threshold": -1.0', '"threshold": "5"', '"threshold": null', '"threshold": true'):
        (tmp_path / "table.json").write_text(text.replace('"threshold": 5.0', wrong))
        with pytest.raises(InputError, match=r"table\.json: bypass\.threshold: "):
            EdgeToBitTable.load(tmp_path / "table.json")


def observed(peaks, network, bicubic) -> Observations:
    measures = {"peaks": peaks, "network_sse": network, "bicubic_sse": bicubic}
    measures["samples"] = np.ones_like(np.asarray(peaks, float))
    return Observations(
        scores=np.ones(len(peaks)),
        bits=np.full((len(peaks), 1), 4),
        images=["a"] * len(peaks),
        backbone="edsr",
        scale=2,
        search_space=(4, 6, 8),
        layers=("a",),
        tile=16,
        stride=14,
        part=8,
        measures=measures,
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.001, 3), st.floats(0.01, 5))
def test_the_threshold_is_the_highest_before_a_budget_is_spent(seed, max_loss, max_tile_loss):
    random = np.random.default_rng(seed)
    peaks = random.permutation(20).reshape(5, 2, 2)
    network = random.uniform(50, 100, peaks.shape)
    bicubic = network * random.uniform(0.95, 1 + 0.05 * peaks)
    expected = None
    for threshold in range(1, 20):
        left_out = TileParts(8, 16, 16, peaks < threshold).left_out
        mixed = np.where(left_out, bicubic, network)
        tiles = 10 * np.log10((mixed.sum((1, 2)) + 1) / (network.sum((1, 2)) + 1))
        if tiles.max() > max_tile_loss:
            break
        loss = 10 * np.log10((mixed.sum() + 1) / (network.sum() + 1))
        if loss <= max_loss:
            expected = (threshold, loss, left_out.mean())
    seen = observed(peaks, network, bicubic)
    found = choose_bypass(seen, max_loss_db=max_loss, max_tile_loss_db=max_tile_loss)
    if expected is None:
        assert found is None
    else:
        assert (found.threshold, found.loss_db, found.share) == pytest.approx(expected)
        assert found.tile_loss_db <= max_tile_loss


def test_no_budget_bypasses_nothing_and_old_observations_are_named():
    peaks = np.arange(8.0).reshape(2, 2, 2)
    seen = observed(peaks, np.ones_like(peaks), np.ones_like(peaks))
    assert choose_bypass(seen, max_loss_db=0, max_tile_loss_db=1) is None
    assert choose_bypass(seen, max_loss_db=0.1, max_tile_loss_db=1).threshold == 7
    del seen.measures["samples"]
    with pytest.raises(InputError, match="observations without samples: run edge_to_bit again"):
        choose_bypass(seen, max_loss_db=0.1, max_tile_loss_db=1)
