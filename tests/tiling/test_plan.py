from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cabm.errors import InputError
from cabm.tiling.plan import bands, merge, place, plan, reflect_101, split

SIZES = st.integers(1, 40)
ONE = st.just(1)


@st.composite
def plans(draw, multiples=ONE):
    multiple = draw(multiples)
    tile = multiple * draw(st.integers(1, max(1, 16 // multiple)))
    step = draw(st.integers(1, tile))
    return plan(draw(SIZES), draw(SIZES), tile, step, size_multiple=multiple)


def ramp(height, width, channels=2):
    count = channels * height * width
    return torch.arange(count, dtype=torch.int32).view(channels, height, width)


def nearest(tiles, scale):
    return tiles.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


@settings(deadline=None)
@given(plans(st.sampled_from([1, 2, 4])), st.integers(1, 4))
def test_merge_of_split_is_nearest_upsampling(tile_plan, scale):
    image = ramp(tile_plan.height, tile_plan.width)
    tiles = split(image, tile_plan)
    assert tiles.shape == (len(tile_plan), 2, tile_plan.tile_height, tile_plan.tile_width)
    assert torch.equal(merge(nearest(tiles, scale), tile_plan, scale), nearest(image, scale))


@settings(deadline=None)
@given(plans(), st.integers(1, 4))
def test_every_output_pixel_comes_from_the_tile_with_the_nearest_centre(tile_plan, scale):
    """Against a brute-force search over all tiles of every pixel."""
    number = torch.arange(len(tile_plan)).view(-1, 1, 1, 1)
    size = (tile_plan.tile_height * scale, tile_plan.tile_width * scale)
    owner = merge(number.expand(-1, 1, *size), tile_plan, scale)[0].numpy()

    y0, x0, y1, x1 = tile_plan.boxes.T
    y = (np.arange(tile_plan.height * scale) + 0.5) / scale
    x = (np.arange(tile_plan.width * scale) + 0.5) / scale
    distance_y = np.abs(y[:, None] - (y0 + y1) / 2)
    distance_x = np.abs(x[:, None] - (x0 + x1) / 2)
    rows, columns = np.indices(owner.shape)
    # Tolerance: thirds are not exact in binary.
    assert np.all(distance_y[rows, owner] <= distance_y.min(1)[:, None] + 1e-9)
    assert np.all(distance_x[columns, owner] <= distance_x.min(1)[None, :] + 1e-9)


@settings(deadline=None)
@given(plans(), st.integers(1, 4))
def test_owned_rectangles_partition_the_output(tile_plan, scale):
    covered = np.zeros((tile_plan.height * scale, tile_plan.width * scale), int)
    rectangles = zip(tile_plan.owned(scale), tile_plan.boxes, strict=True)
    for (oy0, ox0, oy1, ox1), (y0, x0, y1, x1) in rectangles:
        assert y0 * scale <= oy0 <= oy1 <= y1 * scale
        assert x0 * scale <= ox0 <= ox1 <= x1 * scale
        covered[oy0:oy1, ox0:ox1] += 1
    assert np.all(covered == 1)
    assert tile_plan.owned_areas.sum() == tile_plan.height * tile_plan.width


@settings(deadline=None)
@given(plans())
def test_all_tiles_have_one_shape_and_lie_inside(tile_plan):
    y0, x0, y1, x1 = tile_plan.boxes.T
    assert set(y1 - y0) == {min(tile_plan.tile, tile_plan.height)}
    assert set(x1 - x0) == {min(tile_plan.tile, tile_plan.width)}
    assert y0.min() == x0.min() == 0
    assert (y1.max(), x1.max()) == (tile_plan.height, tile_plan.width)
    assert np.all(np.diff(tile_plan.row_starts) <= tile_plan.stride)


@settings(deadline=None)
@given(plans(st.sampled_from([1, 2, 3])), st.integers(1, 4))
def test_bands_give_the_same_image_strip_by_strip(tile_plan, scale):
    image = ramp(tile_plan.height, tile_plan.width)
    expected_tiles = split(image, tile_plan)
    output = torch.empty(2, tile_plan.height * scale, tile_plan.width * scale, dtype=torch.int32)
    done = 0
    for band in bands(tile_plan, scale):
        tiles = split(image[:, band.image_rows], band.plan)
        assert torch.equal(tiles, expected_tiles[band.tiles])
        strip = merge(nearest(tiles, scale), band.plan, scale)
        assert band.output_rows.start == done
        done = band.output_rows.stop
        output[:, band.output_rows] = strip[:, band.strip_rows]
    assert done == output.shape[1]
    assert torch.equal(output, nearest(image, scale))


@settings(deadline=None)
@given(plans(), st.randoms(use_true_random=False))
def test_tiles_can_be_placed_in_any_order(tile_plan, random):
    image = ramp(tile_plan.height, tile_plan.width)
    tiles = split(image, tile_plan)
    numbers = list(range(len(tile_plan)))
    random.shuffle(numbers)
    half = len(numbers) // 2
    output = torch.full_like(image, -1)
    for part in (numbers[:half], numbers[half:]):
        place(output, tiles[part], part, tile_plan, 1)
    assert torch.equal(output, image)


def test_padding_is_by_reflection():
    tile_plan = plan(3, 1, 8, 8, size_multiple=4)
    tiles = split(torch.tensor([[[1], [2], [3]]]), tile_plan)
    assert tiles.shape == (1, 1, 4, 4)
    assert tiles[0, 0, :, 0].tolist() == [1, 2, 3, 2]
    assert torch.equal(tiles[0, 0], tiles[0, 0, :, :1].expand(4, 4))


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(0, 11), st.integers(0, 11))
def test_reflection_equals_numpy_pad(length, before, after):
    padded = np.pad(np.arange(length), (before, after), mode="reflect")
    assert reflect_101(-before, length + after, length).tolist() == padded.tolist()


def test_known_plan():
    tile_plan = plan(96, 200, 96, 94)
    assert tile_plan.boxes.tolist() == [[0, 0, 96, 96], [0, 94, 96, 190], [0, 104, 96, 200]]
    assert tile_plan.owned(4)[:, 1].tolist() == [0, 4 * 95, 4 * 147]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((0, 5, 4, 4), "0 x 5"),
        ((5, 5, 4, 5), "stride 5"),
        ((5, 5, 4, 0), "stride 0"),
        ((5, 5, 0, 0), "tile 0"),
    ],
)
def test_bad_plans_are_refused(arguments, found):
    with pytest.raises(InputError, match=found):
        plan(*arguments)


def test_tile_must_be_a_multiple():
    with pytest.raises(InputError, match="tile 6: the model needs a multiple of 4"):
        plan(50, 50, 6, 6, size_multiple=4)
