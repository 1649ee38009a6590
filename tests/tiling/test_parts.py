"""The rectangles that cover the computed parts of tiles."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cabm.tiling.parts import MARGIN, Box, Region, TileParts, paste

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
def test_each_computed_part_is_in_one_rectangle_and_the_rest_is_left_out(parts):
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
def test_no_other_rectangles_are_less_work(bypassed):
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
def test_rectangles_equal_to_the_tile_change_nothing(parts, dtype):
    tile = np.random.default_rng(0).integers(
        0, np.iinfo(dtype).max, (3, parts.height * SCALE, parts.width * SCALE), dtype
    )
    for region in parts.regions[0]:
        box = region.outer.scaled(SCALE)
        before = tile.copy()
        paste(tile, tile[:, box.y0 : box.y1, box.x0 : box.x1].copy(), region, SCALE)
        np.testing.assert_array_equal(tile, before)
