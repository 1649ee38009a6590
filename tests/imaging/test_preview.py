from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cabm.errors import InputError
from cabm.imaging.preview import fitting, thumbnail, write_preview
from tests.upscaling.helpers import photo


def saved(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def shown(source, target, *arguments, **options):
    write_preview(source, target, *arguments, **options)
    return np.asarray(Image.open(target)).astype(int)


@pytest.mark.parametrize("size", [(202, 260), (404, 520), (252, 325)])
def test_enlarging_is_bicubic_with_the_pixels_in_their_place(tmp_path, size):
    pixels = photo(101, 130)
    found = shown(saved(tmp_path / "a.png", pixels), tmp_path / "b.png", size)
    expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))
    assert np.abs(found - expected).mean() < 0.5


def test_reducing_keeps_the_pixels_in_their_place(tmp_path):
    pixels = photo(200, 260)
    found = shown(saved(tmp_path / "a.png", pixels), tmp_path / "b.png", (101, 130))
    expected = np.asarray(Image.fromarray(pixels).resize((130, 101), Image.Resampling.LANCZOS))
    assert np.abs(found - expected).mean() < 2


def test_a_part_of_an_image_has_its_pixels(tmp_path):
    pixels = photo(101, 130)
    found = shown(saved(tmp_path / "a.png", pixels), tmp_path / "b.png", (40, 30), box=(20, 50, 60, 80))
    np.testing.assert_array_equal(found, pixels[20:60, 50:80])


def test_alpha_shows_white_and_16_bits_show_8(tmp_path):
    pixels = photo(60, 80, 4)
    found = shown(saved(tmp_path / "a.png", pixels), tmp_path / "b.png", (60, 80))
    alpha = pixels[..., 3:] / 255
    assert np.abs(found - (pixels[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1
    gray = photo(60, 80, 1, np.uint16)[..., 0]
    found = shown(saved(tmp_path / "g.png", gray), tmp_path / "b.png", (60, 80))
    assert np.abs(found - gray[..., None] / 257).max() <= 1


def test_the_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    source = saved(tmp_path / "a.jpg", photo(60, 90), exif=exif)
    assert thumbnail(source, 1000).shape == (90, 60, 3)


def test_a_thumbnail_fits_and_is_not_enlarged(tmp_path):
    source = saved(tmp_path / "a.png", photo(60, 90))
    assert thumbnail(source, 30).shape == (20, 30, 3)
    assert thumbnail(source, 300).shape == (60, 90, 3)
    assert fitting((1, 5000), 100) == (1, 100)


def test_a_damaged_image_is_an_input_error(tmp_path):
    source = saved(tmp_path / "a.png", photo(60, 90))
    source.write_bytes(source.read_bytes()[:2000])
    with pytest.raises(InputError, match="corrupt or truncated"):
        thumbnail(source, 30)
