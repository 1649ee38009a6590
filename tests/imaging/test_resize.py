"""Bicubic resizing against files made with MATLAB, weights by hand and a naive version with fractions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from cabm.errors import InputError
from cabm.imaging import resize
from cabm.imaging.resize import (
    crop_to_multiple,
    downscale,
    shrink_kernel,
    upscale_bicubic,
    upscale_kernel,
)
from tests.imaging.helpers import naive, noise

SCALES = (2, 3, 4)


@pytest.mark.parametrize("scale", SCALES)
def test_set5_bit_for_bit(shared_data: Path, scale):
    files = sorted((shared_data / "Set5" / "HR").glob("*.png"))
    assert len(files) == 5
    for file in files:
        high = np.array(Image.open(file).convert("RGB"))
        low = shared_data / "Set5" / "LR_bicubic" / f"X{scale}" / f"{file.stem}x{scale}.png"
        expected = np.array(Image.open(low).convert("RGB"))
        assert_array_equal(downscale(crop_to_multiple(high, scale), scale), expected, err_msg=file.stem)


def test_weights_for_two_written_by_hand():
    shrink = shrink_kernel(2)
    assert_array_equal(shrink.numerators * 256 / shrink.denominator, [[-3, -9, 29, 111, 111, 29, -9, -3]])
    assert (shrink.start, shrink.stride) == (-3, 2)
    upscale = upscale_kernel(2)
    assert_array_equal(
        upscale.numerators * 128 / upscale.denominator, [[-3, 29, 111, -9, 0], [0, -9, 111, 29, -3]]
    )
    assert (upscale.start, upscale.stride) == (-2, 1)


def test_a_step_shrunk_by_two_by_hand():
    row = np.array([[0] * 8 + [200] * 8] * 2, np.uint8)
    # White taps of outputs 2 to 5: the last one, the last 3, all but the first 3, all but the first one.
    # 200 (-3) / 256 < 0, 200 (29 - 9 - 3) / 256 = 13.3, 200 - 13.3 and 200 (256 + 3) / 256 = 202.3.
    assert_array_equal(downscale(row, 2), [[0, 0, 0, 13, 187, 202, 200, 200]])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 2), (4, 4)])
def test_small_images_equal_the_naive_version(scale, shape):
    height, width = shape
    high = noise(height * scale, width * scale, seed=scale)
    assert_array_equal(downscale(high, scale), naive(high, height, width))
    low = noise(height, width, seed=scale + 9)
    assert_array_equal(upscale_bicubic(low, scale), naive(low, height * scale, width * scale))


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from(SCALES), st.integers(0, 999))
@settings(deadline=None, max_examples=15)
def test_any_black_and_white_image_equals_the_naive_version(height, width, scale, seed):
    low = 255 * (noise(height, width, seed=seed) > 127).astype(np.uint8)
    assert_array_equal(upscale_bicubic(low, scale), naive(low, height * scale, width * scale))
    high = 255 * (noise(height * scale, width * scale, seed=seed) > 127).astype(np.uint8)
    assert_array_equal(downscale(high, scale), naive(high, height, width))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 8), st.integers(0, 255))
@settings(deadline=None, max_examples=40)
def test_flat_images_stay_flat(height, width, scale, value):
    flat = np.full((height * scale, width * scale, 3), value, np.uint8)
    assert_array_equal(downscale(flat, scale), flat[:height, :width])
    assert_array_equal(upscale_bicubic(flat[:height, :width], scale), flat)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 6), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_mirrored_images_give_mirrored_results(height, width, scale, seed):
    high, low = noise(height * scale, width * scale, seed=seed), noise(height, width, seed=seed)
    for flipped in (np.flipud, np.fliplr):
        assert_array_equal(downscale(flipped(high), scale), flipped(downscale(high, scale)))
        assert_array_equal(upscale_bicubic(flipped(low), scale), flipped(upscale_bicubic(low, scale)))


@pytest.mark.parametrize("scale", SCALES)
def test_channels_and_bands_are_independent(scale, monkeypatch):
    image = noise(24, 36, 3)
    small, large = downscale(image, scale), upscale_bicubic(image, scale)
    for channel in range(3):
        assert_array_equal(small[..., channel], downscale(image[..., channel], scale))
        assert_array_equal(large[..., channel], upscale_bicubic(image[..., channel], scale))
    monkeypatch.setattr(resize, "BAND_BYTES", 100)
    assert_array_equal(downscale(image, scale), small)
    assert_array_equal(upscale_bicubic(image, scale), large)


def test_a_scale_of_one_copies():
    image = noise(5, 7, 3)
    for copy in (downscale(image, 1), upscale_bicubic(image, 1)):
        assert_array_equal(copy, image)
        assert not np.shares_memory(copy, image)


def test_cropping_keeps_the_top_left():
    image = noise(11, 7, 3)
    cropped = crop_to_multiple(image, 3)
    assert_array_equal(cropped, image[:9, :6])
    assert np.shares_memory(cropped, image)
    with pytest.raises(InputError, match="7x11 pixels is smaller than the scale 8"):
        crop_to_multiple(image, 8)


@pytest.mark.parametrize(
    ("image", "scale", "message"),
    [
        (np.zeros((4, 6), np.uint8), 4, "6x4 pixels cannot be shrunk by 4"),
        (np.zeros((4, 4), np.uint8), 0, "scale 0"),
        (np.zeros((4, 4), np.uint8), -2, "scale -2"),
        (np.zeros((4, 4), np.float32), 2, "float32 is not an image"),
        (np.zeros((0, 4), np.uint8), 2, "not an image"),
        (np.zeros((2, 2, 2, 2), np.uint8), 2, "not an image"),
    ],
)
def test_images_and_scales_that_cannot_be_resized_are_refused(image, scale, message):
    with pytest.raises(InputError, match=message):
        downscale(image, scale)
