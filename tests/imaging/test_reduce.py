"""Reduced images against Pillow, whose Lanczos is an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from cabm.imaging.raster import array_raster, in_memory
from cabm.imaging.reader import open_raster
from cabm.imaging.row_stream import RowShape, RowsNotTaken, reduced_rows, row_stream
from cabm.imaging.stored import stored_rows
from cabm.imaging.writer import OutputSpec, image_writer
from tests.upscaling.helpers import photo

PAD = 64


def reduce(array: np.ndarray, height: int, width: int) -> np.ndarray:
    shape = RowShape(*array.shape, 8 * array.itemsize)
    rows = (array[top : top + 7] for top in range(0, len(array), 7))
    return reduced_rows(rows, shape, height, width)


def by_pillow(channel: np.ndarray, height: int, width: int) -> np.ndarray:
    """Reduce (H,W) in floating point; the border repeats, which Pillow itself does not do."""
    padded = np.pad(channel.astype(np.float32), PAD, mode="edge")
    box = (PAD, PAD, PAD + channel.shape[1], PAD + channel.shape[0])
    return np.asarray(Image.fromarray(padded).resize((width, height), Image.Resampling.LANCZOS, box=box))


def soft(height: int, width: int, channels: int, dtype: type, seed: int = 0) -> np.ndarray:
    """Return noise as soft as an upscaled photograph, over the whole range."""
    noise = np.random.default_rng(seed).normal(size=(height, width, channels))
    values = gaussian_filter(noise, (2, 2, 0), mode="nearest")
    values = (values - values.min()) / max(np.ptp(values), 1e-9)
    return np.round(values * np.iinfo(dtype).max).astype(dtype)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.floats(0.1, 1),
    st.floats(0.1, 1),
    st.sampled_from([1, 3]),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_every_size_is_exact_and_equals_pillow_within_a_level(height, width, y, x, channels, dtype):
    array = soft(height, width, channels, dtype)
    high, wide = max(1, round(height * y)), max(1, round(width * x))
    found = reduce(array, high, wide)
    assert found.shape == (high, wide, channels) and found.dtype == dtype
    peak = np.iinfo(dtype).max
    expected = np.stack([by_pillow(array[..., c], high, wide) for c in range(channels)], axis=2)
    assert np.abs(found - np.clip(expected, 0, peak)).max() <= (1 if peak == 255 else 257)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 4])
def test_colours_are_weighted_by_alpha(channels, dtype):
    array = soft(60, 80, channels, dtype)
    peak = np.iinfo(dtype).max
    array[..., -1] = np.where(np.hypot(*np.mgrid[-30:30, -40:40]) > 20, peak, 0)
    other = array.copy()
    other[array[..., -1] == 0, :-1] = peak  # invisible, so it must not matter
    found = reduce(array, 37, 51)
    np.testing.assert_array_equal(found, reduce(other, 37, 51))
    alpha = array[..., -1] / peak
    expected_alpha = by_pillow(alpha * peak, 37, 51)
    np.testing.assert_allclose(found[..., -1], np.clip(expected_alpha, 0, peak), atol=2 * (peak // 255))
    visible = expected_alpha > peak / 2
    for c in range(channels - 1):
        expected = by_pillow(array[..., c] * alpha, 37, 51) / np.maximum(expected_alpha / peak, 0.01)
        difference = np.abs(found[..., c] - np.clip(expected, 0, peak))[visible]
        assert difference.max() <= 2 * (peak // 255)


@pytest.mark.parametrize("channels", [2, 4])
def test_opaque_images_equal_those_without_alpha(channels):
    colour = photo(50, 60, channels - 1)
    opaque = np.concatenate([colour, np.full((50, 60, 1), 255, np.uint8)], axis=2)
    np.testing.assert_array_equal(reduce(opaque, 33, 41)[..., :-1], reduce(colour, 33, 41))
    assert (reduce(opaque, 33, 41)[..., -1] == 255).all()


def test_flat_areas_stay_as_they_are():
    for value in (0, 1, 127, 254, 255):
        assert (reduce(np.full((40, 50, 3), value, np.uint8), 17, 23) == value).all()


@pytest.mark.parametrize("file_format", ["png", "tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_files_hold_the_reduced_rows(tmp_path, file_format, dtype):
    array = soft(70, 90, 3, dtype)
    spec = OutputSpec(41, 53, 3, 8 * array.itemsize, format=file_format, computed=(70, 90))
    path = tmp_path / f"a.{file_format}"
    with image_writer(path, spec) as push:
        for top in range(0, 70, 11):
            push(array[top : top + 11])
    np.testing.assert_array_equal(in_memory(open_raster(path)).array, reduce(array, 41, 53))


def test_a_failed_receiver_is_an_error_of_the_writer():
    def fail(image):
        raise ValueError("no")

    with pytest.raises(RowsNotTaken, match="no"), row_stream(RowShape(9, 9, 3, 8), fail) as stream:
        stream.write(photo(9, 9))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_stored_rows_are_read_as_they_were_and_leave_no_file(tmp_path, dtype):
    array = photo(130, 21, 4, dtype)
    with stored_rows(array_raster(array).blocks(17), tmp_path / "new" / "a.png") as raster:
        assert (raster.height, raster.width, raster.channels, raster.dtype) == (130, 21, 4, dtype)
        for _ in range(2):
            np.testing.assert_array_equal(np.concatenate(list(raster.blocks())), array)
        assert list((tmp_path / "new").iterdir()) == []
