from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from cabm.imaging.pixels import FILL_REACH, fill_transparent, image_output, network_input, upscale_alpha
from cabm.imaging.resize import upscale_bicubic
from tests.upscaling.helpers import photo


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_network_input_has_three_channels_in_one_range(channels):
    eight, sixteen = photo(9, 11, channels), photo(9, 11, channels, np.uint16)
    seen = network_input(eight)
    assert seen.shape == (3, 9, 11)
    assert seen.dtype == np.uint8
    precise = network_input(sixteen)
    assert precise.dtype == np.float32
    assert float(precise.max()) <= 255
    assert np.abs(precise - seen).max() <= 0.6


def test_visible_pixels_keep_their_colours_and_transparent_ones_take_the_nearest():
    random = np.random.default_rng(0)
    colour = random.integers(100, 200, (40, 50, 3), np.uint8)
    alpha = np.zeros((40, 50), np.uint8)
    alpha[15:25, 20:30] = random.integers(1, 256, (10, 10))
    colour[alpha == 0] = 0
    filled = fill_transparent(colour, alpha)
    np.testing.assert_array_equal(filled[alpha > 0], colour[alpha > 0])
    assert filled.min() >= 100
    assert filled.max() < 200
    distance = ndimage.distance_transform_cdt(alpha == 0, "chessboard")
    mean = np.rint(colour[alpha > 0].mean(axis=0))
    np.testing.assert_array_equal(
        filled[distance > FILL_REACH], np.broadcast_to(mean, (40, 50, 3))[distance > FILL_REACH]
    )
    next_to_corner = colour[15, 20]
    np.testing.assert_array_equal(filled[14, 19], next_to_corner)


def test_a_transparent_image_is_black_and_a_visible_one_unchanged():
    colour = photo(5, 6)
    assert not fill_transparent(colour, np.zeros((5, 6), np.uint8)).any()
    assert fill_transparent(colour, np.full((5, 6), 3, np.uint8)) is colour


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_upscaled_with_bicubic(dtype):
    alpha = photo(12, 15, 2, dtype)[..., 1]
    upscaled = upscale_alpha(alpha, 3)
    assert upscaled.dtype == dtype
    assert {int(upscaled.min()), int(upscaled.max())} == {0, np.iinfo(dtype).max}
    # low contrast, so that the exact resize does not clip between its passes
    soft = photo(12, 15, 1)[..., 0] // 2 + 60
    assert np.abs(upscale_alpha(soft, 3).astype(int) - upscale_bicubic(soft, 3)).max() <= 1
    opaque = np.full((4, 5), np.iinfo(dtype).max, dtype)
    np.testing.assert_array_equal(upscale_alpha(opaque, 2), np.full((8, 10), np.iinfo(dtype).max))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_neutral_colours_become_the_same_gray(dtype):
    gray = np.arange(0, np.iinfo(dtype).max + 1, np.iinfo(dtype).max // 255).astype(dtype)[None, :, None]
    np.testing.assert_array_equal(image_output(gray.repeat(3, axis=2), 1, None), gray)
    alpha = gray[..., 0]
    both = image_output(gray.repeat(3, axis=2), 2, alpha)
    np.testing.assert_array_equal(both, np.stack([alpha, alpha], axis=2))
