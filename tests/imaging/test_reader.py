from __future__ import annotations

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

from cabm.errors import InputError
from cabm.imaging.raster import in_memory
from cabm.imaging.reader import open_raster
from cabm.imaging.source import ReadOptions
from tests.upscaling.helpers import photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def save(path, array, **options):
    """Write an array with Pillow, a different library from the one that reads it."""
    if array.dtype == np.uint16:
        assert array.shape[2] == 1
        Image.fromarray(array[..., 0]).save(path, **options)
    else:
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_lossless_formats_are_read_exactly(tmp_path, suffix, channels):
    if suffix == ".bmp" and channels in (2, 4):
        pytest.skip("BMP as Pillow writes it has no alpha")
    array = photo(33, 70, channels)
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    raster = open_raster(save(tmp_path / f"ä ö{suffix}", array, **options))
    if suffix == ".webp" and channels < 3:
        expanded = array[..., :1].repeat(3, axis=2)
        array = expanded if channels == 1 else np.concatenate([expanded, array[..., 1:]], axis=2)
    assert (raster.height, raster.width, raster.channels) == array.shape
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(raster.blocks(10))), array)


def test_jpeg_is_close_to_another_decoder(tmp_path):
    array = photo(40, 30)
    path = save(tmp_path / "a.jpg", array, quality=95)
    expected = np.asarray(Image.open(path)).astype(int)
    assert np.abs(in_memory(open_raster(path)).array - expected).mean() < 1


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_kept(tmp_path, suffix):
    array = photo(12, 17, 1, np.uint16)
    raster = open_raster(save(tmp_path / f"a{suffix}", array))
    assert raster.dtype == np.uint16
    np.testing.assert_array_equal(in_memory(raster).array, array)


def test_palettes_and_single_bits_are_expanded(tmp_path):
    rgba = Image.fromarray(photo(20, 20, 4))
    rgba.quantize(16).save(tmp_path / "a.png")
    expected = np.asarray(Image.open(tmp_path / "a.png").convert("RGBA"))
    np.testing.assert_array_equal(in_memory(open_raster(tmp_path / "a.png")).array, expected)
    Image.fromarray(photo(20, 20, 1)[..., 0]).convert("1").save(tmp_path / "b.png")
    raster = open_raster(tmp_path / "b.png")
    assert raster.channels == 1
    assert set(np.unique(in_memory(raster).array)) == {0, 255}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_the_orientation_is_applied(tmp_path, orientation, suffix):
    array = np.zeros((24, 40, 3), np.uint8)
    array[:12, :20, 0], array[:12, 20:, 1], array[12:, :20, 2] = 255, 255, 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a{suffix}", array, exif=exif)
    from PIL import ImageOps

    expected = np.asarray(ImageOps.exif_transpose(Image.open(path))).astype(int)
    found = in_memory(open_raster(path)).array
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 3


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_profile_and_resolution_are_read(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", photo(8, 8), icc_profile=SRGB, dpi=(300, 300))
    metadata = open_raster(path).metadata
    assert metadata.icc == SRGB
    np.testing.assert_allclose(np.array(metadata.density) * 25.4, 300, rtol=1e-3)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_is_converted_with_a_note_and_without_its_profile(tmp_path, suffix):
    array = photo(16, 16)
    Image.fromarray(array).convert("CMYK").save(tmp_path / f"a{suffix}")
    raster = open_raster(tmp_path / f"a{suffix}")
    assert (raster.channels, raster.dtype, raster.metadata.icc) == (3, np.uint8, None)
    assert raster.notes == ("converted from CMYK to sRGB without a profile",)
    assert np.abs(in_memory(raster).array.astype(int) - array).mean() < 40


def test_only_the_first_page_is_read_with_a_note(tmp_path):
    pages = [Image.fromarray(photo(8, 8, seed=seed)) for seed in (0, 1)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    raster = open_raster(tmp_path / "a.tif")
    assert raster.notes == ("first of 2 pages",)
    np.testing.assert_array_equal(in_memory(raster).array, photo(8, 8))


def test_the_content_decides_the_format(tmp_path):
    save(tmp_path / "a.png", photo(8, 9)).rename(tmp_path / "photo.jpg")
    assert open_raster(tmp_path / "photo.jpg").format == "png"
    save(tmp_path / "b.png", photo(8, 9)).rename(tmp_path / "b[1]")
    assert open_raster(tmp_path / "b[1]").width == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"hello", "not an image"),
        (b"GIF89a123456", "corrupt or truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "corrupt or truncated .*; copy it again"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "corrupt or truncated"),
        (b"RIFF\x24\0\0\0WEBPVP8 " + bytes(40), "corrupt or truncated"),
        (b"II*\0" + bytes(40), "corrupt or truncated"),
        (b"BM" + bytes(60), "not supported .*Unsupported BMP header"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        in_memory(open_raster(path))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".bmp"])
def test_truncated_files_are_refused(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", photo(80, 60))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(InputError, match=r"corrupt or truncated|not an image"):
        in_memory(open_raster(path))


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_raster(tmp_path / "a.png")
    with pytest.raises(InputError, match="is a folder"):
        open_raster(tmp_path)


def test_pixels_without_a_known_range_are_refused(tmp_path):
    pyvips.Image.black(8, 8).cast("float").tiffsave(str(tmp_path / "a.tif"))
    with pytest.raises(InputError, match="no known range"):
        open_raster(tmp_path / "a.tif")
    pyvips.Image.black(8, 8, bands=6).tiffsave(str(tmp_path / "b.tif"))
    with pytest.raises(InputError, match="6 channels"):
        open_raster(tmp_path / "b.tif")


def test_the_error_for_large_images_names_the_option_for_the_limit(tmp_path):
    for suffix in (".png", ".bmp", ".webp"):
        path = save(tmp_path / f"a{suffix}", photo(20, 30))
        with pytest.raises(InputError, match="limit"):
            open_raster(path, ReadOptions(599))
        assert open_raster(path, ReadOptions(600)).width == 30
    for option, advice in (
        ("--max-pixels", "raise the limit with --max-pixels 600"),
        ("", "smaller image"),
    ):
        with pytest.raises(InputError, match=advice):
            open_raster(tmp_path / "a.png", options=ReadOptions(599, limit_option=option))


def test_decompression_bombs_are_refused_by_their_header(tmp_path):
    pyvips.Image.black(50000, 50000).pngsave(str(tmp_path / "bomb.png"), bitdepth=1, compression=9)
    assert (tmp_path / "bomb.png").stat().st_size < 2_000_000
    with pytest.raises(InputError, match=r"50000 x 50000 pixels .* max_pixels 2500000000"):
        open_raster(tmp_path / "bomb.png")
