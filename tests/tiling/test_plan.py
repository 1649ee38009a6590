from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cabm.errors import InputError
from cabm.tiling.plan import bands, plan, reflect_101, split

SIZES = st.integers(1, 40)
ONE = st.just(1)


@st.composite
def plans(draw, multiples=ONE):
    multiple = draw(multiples)
    tile = multiple * draw(st.integers(1, max(1, 16 // multiple)))
    stride = draw(st.integers(1, tile))
    return plan(draw(SIZES), draw(SIZES), tile, stride, size_multiple=multiple)


def ramp(height, width, channels=2):
    count = channels * height * width
    return np.arange(count, dtype=np.int32).reshape(channels, height, width)


def nearest(tiles, scale):
    return tiles.repeat(scale, -1).repeat(scale, -2)


def painted(tile_plan, image, scale):
    """The tiles of an image, each cut to the pixels that belong to it, put together again."""
    tiles = nearest(split(image, tile_plan), scale)
    output = np.full((len(image), tile_plan.height * scale, tile_plan.width * scale), -1, image.dtype)
    corners = tile_plan.boxes[:, :2] * scale
    for tile, (y0, x0, y1, x1), (top, left) in zip(tiles, tile_plan.owned(scale), corners, strict=True):
        output[:, y0:y1, x0:x1] = tile[:, y0 - top : y1 - top, x0 - left : x1 - left]
    return output


@settings(deadline=None)
@given(plans(st.sampled_from([1, 2, 4])), st.integers(1, 4))
def test_the_owned_pixels_of_all_tiles_make_the_image(tile_plan, scale):
    image = ramp(tile_plan.height, tile_plan.width)
    assert split(image, tile_plan).shape == (len(tile_plan), 2, tile_plan.tile_height, tile_plan.tile_width)
    np.testing.assert_array_equal(painted(tile_plan, image, scale), nearest(image, scale))


@settings(deadline=None)
@given(plans(), st.integers(1, 4))
def test_every_output_pixel_belongs_to_the_tile_with_the_nearest_centre(tile_plan, scale):
    """Against a brute-force search over all tiles for every pixel."""
    owner = np.full((tile_plan.height * scale, tile_plan.width * scale), -1)
    for number, (y0, x0, y1, x1) in enumerate(tile_plan.owned(scale)):
        owner[y0:y1, x0:x1] = number

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
def test_all_tiles_have_one_shape_and_stay_inside(tile_plan):
    y0, x0, y1, x1 = tile_plan.boxes.T
    assert set(y1 - y0) == {min(tile_plan.tile, tile_plan.height)}
    assert set(x1 - x0) == {min(tile_plan.tile, tile_plan.width)}
    assert y0.min() == x0.min() == 0
    assert (y1.max(), x1.max()) == (tile_plan.height, tile_plan.width)
    assert np.all(np.diff(tile_plan.row_starts) <= tile_plan.stride)


@settings(deadline=None)
@given(plans(st.sampled_from([1, 2, 3])))
def test_bands_give_the_same_tiles_strip_by_strip(tile_plan):
    image = ramp(tile_plan.height, tile_plan.width)
    expected = split(image, tile_plan)
    done = 0
    for band in bands(tile_plan):
        assert band.tiles.start == done
        done = band.tiles.stop
        np.testing.assert_array_equal(split(image[:, band.image_rows], band.plan), expected[band.tiles])
    assert done == len(tile_plan)


def test_padding_is_by_reflection():
    tile_plan = plan(3, 1, 8, 8, size_multiple=4)
    tiles = split(np.array([[[1], [2], [3]]]), tile_plan)
    assert tiles.shape == (1, 1, 4, 4)
    assert tiles[0, 0, :, 0].tolist() == [1, 2, 3, 2]
    np.testing.assert_array_equal(tiles[0, 0], tiles[0, 0, :, :1].repeat(4, axis=1))


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
    with pytest.raises(InputError, match="tile 6: this model needs a multiple of 4"):
        plan(50, 50, 6, 6, size_multiple=4)
