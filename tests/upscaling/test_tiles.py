"""Tiles with bypassed parts, in memory and as a stream."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cabm.imaging.bicubic import surround, upscale_surrounded
from cabm.imaging.raster import array_raster
from cabm.tiling.parts import MARGIN, TileParts
from cabm.tiling.plan import plan
from cabm.upscaling.runners import TileRunner
from cabm.upscaling.streaming import upscale
from cabm.upscaling.tiles import TileRun, super_resolve
from tests.tables.helpers import bypass_table, half_smooth

SCALE = 2


class Inverted(TileRunner):
    """Stands in for a network: it inverts each pixel on its own, far from bicubic."""

    scale = SCALE

    def __init__(self, *, in_batches: bool = True) -> None:
        self.pixels = 0
        self.highest = 0.0
        self.in_batches = in_batches

    def __call__(self, tiles, bits, *, inside=False):
        self.pixels += tiles[:, 0].size
        self.highest = max(self.highest, tiles.std(axis=(2, 3)).mean(axis=1).max())
        big = tiles.astype(np.float32).repeat(SCALE, 2).repeat(SCALE, 3)
        return 255 - big, bits


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_smooth_parts_are_bicubic_and_the_others_from_the_network(dtype):
    tile = half_smooth(48, 48).transpose(2, 0, 1)[None]
    bypassed = np.zeros((1, 6, 6), bool)
    bypassed[:, :, :3] = True
    runner = Inverted()
    run = TileRun(
        runner,
        tile,
        np.array([[4, 8]]),
        batch_size=4,
        parts=TileParts(8, 48, 48, bypassed),
        dtype=dtype,
    )
    assert list(run) == [0]
    level = 1 if dtype == np.uint8 else 257
    network = Inverted()(tile, None)[0][0]
    bicubic = upscale_surrounded(surround(tile[0]).astype(np.float32), SCALE).clip(0, 255)
    found = run.upscaled[0] / level
    np.testing.assert_array_equal(found[:, :, 48:], network[:, :, 48:])
    far = (24 - MARGIN + 1) * SCALE
    assert np.abs(found[:, :, :far] - bicubic[:, :, :far]).max() <= 0.5
    assert runner.pixels == 48 * (24 + MARGIN)
    assert run.used.tolist() == [[4, 8]]


def test_streams_and_images_in_memory_are_upscaled_alike():
    image, table = half_smooth(130, 150), bypass_table()
    runner = Inverted()
    whole = super_resolve(runner, image, table=table, tile=48, stride=42)
    rows = upscale(array_raster(image), Inverted(), plan(130, 150, 48, 42), table=table)
    np.testing.assert_array_equal(np.concatenate(list(rows)), whole.image)
    assert 0.3 < whole.bypassed.mean() < 0.6
    assert runner.pixels == pytest.approx(whole.work.sum() * 48 * 48)
    assert (whole.image[:, : 2 * 60] == 90).all(), "flat parts are bicubic"


@pytest.mark.parametrize("in_batches", [True, False])
def test_contrast_is_limited_before_the_network_and_restored_behind_it(in_batches):
    plain, table = Inverted(in_batches=in_batches), replace(bypass_table(), bypass=None)
    image = half_smooth(130, 150)
    whole = super_resolve(plain, image, table=table, tile=48, stride=42).image
    assert plain.highest > 70
    runner, table = Inverted(in_batches=in_batches), replace(table, contrast_limit=30.0)
    limited = super_resolve(runner, image, table=table, tile=48, stride=42).image
    assert 29.9 < runner.highest < 30.1
    rows = upscale(array_raster(image), runner, plan(130, 150, 48, 42), table=table)
    np.testing.assert_array_equal(np.concatenate(list(rows)), limited)
    # 255 - x of a tile around its mean m: restored, it is (255 - 2 m) f + m - (x - m)
    noise = np.s_[20:-20, -40:]
    before, after = (pixels[noise].astype(float) for pixels in (whole, limited))
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.99
    assert after.std() == pytest.approx(before.std(), rel=0.05)
    left = np.s_[:, :60]  # tiles without contrast enter as they are
    np.testing.assert_array_equal(limited[left], whole[left])


def test_rows_come_while_the_network_still_runs():
    runner = Inverted()
    rows = upscale(array_raster(half_smooth(400, 60)), runner, plan(400, 60, 48, 42))
    height, so_far = len(next(rows)), runner.pixels
    assert height + sum(map(len, rows)) == 400 * SCALE
    assert so_far < runner.pixels / 2
