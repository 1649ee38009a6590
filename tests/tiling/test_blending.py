from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cabm.tiling.blending import MAX_FADE, TileJoiner, blend_tiles, fades
from cabm.tiling.plan import plan, split
from tests.tiling.test_plan import nearest, plans


@settings(deadline=None)
@given(plans(st.sampled_from([1, 2, 4])), st.integers(1, 4))
def test_tiles_that_agree_are_joined_unchanged(tile_plan, scale):
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (3, tile_plan.height, tile_plan.width), np.uint8)
    upscaled = blend_tiles(nearest(split(image, tile_plan), scale), tile_plan, scale)
    expected = nearest(image, scale).transpose(1, 2, 0)
    np.testing.assert_array_equal(upscaled, expected)


@settings(deadline=None)
@given(plans(), st.integers(1, 4))
def test_rows_of_pixels_are_returned_as_soon_as_they_are_finished(tile_plan, scale):
    joiner, rows = TileJoiner(tile_plan, scale), 0
    for index, start in enumerate(tile_plan.row_starts):
        shape = (tile_plan.num_columns, 1, tile_plan.tile_height * scale, tile_plan.tile_width * scale)
        rows += len(joiner.add(np.zeros(shape, np.uint8)))
        following = tile_plan.row_starts[index + 1 : index + 2]
        assert rows >= (following[0] if following else tile_plan.height) * scale - 1
        assert rows <= min(start + tile_plan.tile_height, tile_plan.height) * scale
    assert rows == tile_plan.height * scale


@given(st.integers(1, 60), st.integers(1, 16), st.integers(1, 16), st.integers(1, 4))
def test_fades_are_centred_in_the_overlaps_and_disjoint(length, tile, stride, scale):
    tile_plan = plan(length, length, tile, min(stride, tile))
    starts, side = tile_plan.row_starts, tile_plan.tile_height
    ranges = fades(starts, side, scale)
    assert len(ranges) == len(starts) - 1
    for (first, end), before, after in zip(ranges, starts, starts[1:], strict=False):
        assert after * scale <= first <= end <= (before + side) * scale
        assert first + end == (before + side + after) * scale
        assert end - first <= MAX_FADE * scale
        assert end - first <= max(1, (before + side - after) * scale / 2)
    assert all(end <= first for (_, end), (first, _) in pairwise(ranges))


def test_a_step_between_tiles_becomes_a_ramp_across_the_middle_of_their_overlap():
    tile_plan = plan(8, 12, 8, 4)
    tiles = np.zeros((2, 1, 32, 32), np.uint8)
    tiles[1] = 160
    row = blend_tiles(tiles, tile_plan, 4)[5, :, 0].astype(int)
    assert row.tolist() == [0] * 20 + [10, 30, 50, 70, 90, 110, 130, 150] + [160] * 20


def test_sixteen_bits_keep_their_precision():
    tiles = np.full((2, 1, 8, 8), 65535, np.uint16)
    tiles[1] = 65533
    assert set(np.unique(blend_tiles(tiles, plan(8, 12, 8, 4), 1))) <= {65533, 65534, 65535}
