"""Files that must be read right, or refused with the true reason: never wrong without a word."""

from __future__ import annotations

import io
import os
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image, ImageCms

from cabm.errors import InputError
from cabm.imaging.formats import SUFFIXES, describe_formats, is_image
from cabm.imaging.images import read_rgb8
from cabm.imaging.raster import in_memory
from cabm.imaging.reader import open_raster
from cabm.imaging.search import find_images, left_out
from cabm.imaging.source import ReadOptions
from tests.upscaling.helpers import photo


def tiff(path, array, **options):
    tifffile.imwrite(path, array, **options)
    return path


def refusal(path, options=None) -> str:
    """Return the error, which is one line, and does not call a whole file corrupt."""
    with pytest.raises(InputError) as caught:
        in_memory(open_raster(path, options=options))
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("channels", [1, 3])
def test_only_marked_channels_of_a_tiff_are_alpha(tmp_path, channels):
    colour = photo(20, 30, channels)
    extra = photo(20, 30, 2)[..., 1:]
    both = np.dstack([colour, extra])
    kind = {"photometric": "rgb" if channels == 3 else "minisblack", "planarconfig": "contig"}
    path = tiff(tmp_path / "a.tif", both, extrasamples=[2], **kind)
    np.testing.assert_array_equal(in_memory(open_raster(path)).array, both)
    for unmarked in ([0], ["unspecified"]):
        tiff(path, both, extrasamples=unmarked, **kind)
        assert "not marked as alpha (ExtraSamples is 0" in refusal(path)
    tiff(path, np.dstack([both, extra]), extrasamples=[0, 0], **kind)
    assert f"{channels + 2} channels" in refusal(path)


def test_premultiplied_alpha_is_divided_out(tmp_path):
    colour, alpha = photo(20, 30), np.full((20, 30, 1), 128, np.uint8)
    stored = np.dstack([np.rint(colour * (128 / 255)).astype(np.uint8), alpha])
    path = tiff(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=[1])
    found = in_memory(open_raster(path)).array.astype(int)
    assert np.abs(found[..., :3] - colour).max() <= 1
    assert (found[..., 3] == 128).all()


def test_thumbnails_and_masks_in_front_are_skipped_with_a_note(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(photo(8, 8), photometric="rgb", subfiletype=1)
        file.write(photo(40, 30, seed=1), photometric="rgb")
        file.write(photo(40, 30, seed=2), photometric="rgb")
    raster = open_raster(path)
    np.testing.assert_array_equal(in_memory(raster).array, photo(40, 30, seed=1))
    assert raster.notes == ("skipped 1 reduced image (thumbnails or masks)", "first of 2 pages")
    np.testing.assert_array_equal(read_rgb8(path), photo(40, 30, seed=1))
    assert "only thumbnails" in refusal(tiff(path, photo(8, 8), photometric="rgb", subfiletype=1))


def test_raw_data_of_cameras_is_refused(tmp_path):
    gray = photo(16, 16, 1)[..., 0]
    assert "raw data of a camera" in refusal(tiff(tmp_path / "a.tif", gray, photometric=32803))
    dng = [(50706, "B", 4, (1, 4, 0, 0), True)]
    path = tiff(tmp_path / "b.tif", photo(16, 16), photometric="rgb", subfiletype=1, extratags=dng)
    assert "raw data of a camera" in refusal(path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "int16", "uint32"])
@pytest.mark.parametrize("channels", [1, 3])
def test_numbers_without_a_known_range_are_refused(tmp_path, dtype, channels):
    array = photo(16, 16, channels).astype(dtype)
    array = array[..., 0] if channels == 1 else array
    path = tiff(tmp_path / "a.tif", array, photometric="rgb" if channels == 3 else "minisblack")
    message = refusal(path)
    assert "no known range" in message or "32 bits per channel" in message
    assert "8 or 16 bits" in message and "corrupt" not in message


def test_lab_becomes_srgb_as_another_library_converts_it(tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    array = np.clip(photo(20, 30), 40, 215)
    converted = ImageCms.profileToProfile(Image.fromarray(array), srgb, lab, outputMode="LAB")
    converted.save(tmp_path / "8.tif")
    raster = open_raster(tmp_path / "8.tif")
    assert raster.notes == ("converted from CIELab to sRGB",)
    assert np.abs(in_memory(raster).array.astype(int) - array).mean() < 1
    image = pyvips.Image.new_from_array(array).copy(interpretation="srgb")
    image.colourspace("labs").tiffsave(str(tmp_path / "16.tif"))
    raster = open_raster(tmp_path / "16.tif")
    assert raster.dtype == np.uint16
    assert np.abs(in_memory(raster).array / 257 - array).mean() < 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_cmyk_keeps_its_bits(tmp_path, dtype):
    cmyk = np.asarray(Image.fromarray(photo(20, 30)).convert("CMYK")).astype(dtype)
    cmyk *= 257 if dtype == np.uint16 else 1
    raster = open_raster(tiff(tmp_path / "a.tif", cmyk, photometric="separated"))
    assert (raster.channels, raster.dtype) == (3, dtype)
    assert "from CMYK to sRGB" in raster.notes[0]
    assert np.abs(in_memory(raster).array / (257 if dtype == np.uint16 else 1) - photo(20, 30)).mean() < 40


def test_subsampled_colours_of_a_tiff_gain_no_alpha(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(photo(32, 32)).convert("YCbCr").save(path)
    content = path.read_bytes()
    assert open_raster(path).channels == 3
    # claims 2 x 2 subsampling in place of none, for which libtiff returns RGBA
    entry = struct.pack("<HHI", 530, 3, 2)
    if entry in content:
        at = content.index(entry)
        path.write_bytes(content[: at + 8] + struct.pack("<HH", 2, 2) + content[at + 12 :])
        assert open_raster(path).channels == 3


def test_valid_files_that_are_not_supported_are_not_called_corrupt(tmp_path):
    planes = photo(32, 32).transpose(2, 0, 1)
    path = tiff(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate", tile=(16, 16))
    assert "tiles with separate planes is not supported" in refusal(path)
    assert "LZMA compression is not" in refusal(
        tiff(tmp_path / "b.tif", photo(32, 32), photometric="rgb", compression="lzma")
    )
    twelve = tiff(tmp_path / "c.tif", photo(32, 32, 1)[..., 0], photometric="minisblack")
    _set_tag(twelve, 258, 12)
    assert "12 bits per channel" in refusal(twelve)
    _set_tag(twelve, 258, 8)
    _set_tag(twelve, 259, 34712)
    assert "JPEG 2000" in refusal(twelve)


def _set_tag(path, tag, value):
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[tag].overwrite(value)


def test_jpeg_of_another_kind_is_named(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(photo(32, 32)).save(path)
    content = bytearray(path.read_bytes())
    frame = content.index(b"\xff\xc0")
    content[frame + 4] = 12
    path.write_bytes(content)
    assert "12 bits per channel" in refusal(path)
    content[frame + 1], content[frame + 4] = 0xC3, 8
    path.write_bytes(content)
    assert "lossless" in refusal(path)


def test_a_huge_png_is_refused_by_its_size(tmp_path):
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b""))
    assert "2147483647 x 2147483647 pixels are more than the limit" in refusal(path)


def test_pipes_are_named_as_such(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "a pipe or device" in refusal(tmp_path / "a.png")


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture(scope="module", params=[False, True], ids=["baseline", "progressive"])
def jpeg(request) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo(200, 240)).save(file, "jpeg", quality=95, progressive=request.param)
    return file.getvalue()


def test_a_jpeg_without_its_end_marker_is_complete(tmp_path, jpeg):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg)
    whole = in_memory(open_raster(path))
    assert whole.notes == ()
    path.write_bytes(jpeg[:-2])
    found = in_memory(open_raster(path))
    np.testing.assert_array_equal(found.array, whole.array)
    assert found.notes == ("the end marker of the JPEG is missing; the picture is complete",)
    path.write_bytes(jpeg + b"\0" * 300)  # padding, as some cards and cameras leave it
    assert in_memory(open_raster(path)).notes == ()


def test_a_jpeg_that_lost_data_is_refused_unless_asked_for(tmp_path, jpeg):
    third = len(jpeg) // 3
    path = tmp_path / "a.jpg"
    for lost in (jpeg[:third] + jpeg[third + 900 :], jpeg[: 2 * third]):
        path.write_bytes(lost)
        assert "read what is left with damaged=True" in refusal(path)
        raster = in_memory(open_raster(path, options=ReadOptions(damaged=True)))
        assert raster.array.shape == (200, 240, 3)
        assert "lost data" in raster.notes[-1]
        with pytest.raises(InputError):
            read_rgb8(path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_other_files_that_lost_data_are_read_on_demand(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    options = {"compression": "tiff_lzw"} if suffix == ".tif" else {}
    Image.fromarray(photo(200, 240)).save(path, **options)
    content = path.read_bytes()
    third = len(content) // 3
    path.write_bytes(content[:third] + b"\xff" * 200 + content[third + 200 :])
    if suffix == ".webp":  # has no checksums
        return
    assert "read what is left with damaged=True" in refusal(path)
    raster = in_memory(open_raster(path, options=ReadOptions(damaged=True)))
    assert "lost data" in raster.notes[-1]


def test_png_without_its_end_is_complete(tmp_path):
    Image.fromarray(photo(30, 40)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-12])
    np.testing.assert_array_equal(in_memory(open_raster(tmp_path / "a.png")).array, photo(30, 40))


def test_every_name_of_a_jpeg_is_taken():
    for suffix in (".jpg", ".JPEG", ".jpe", ".jfif"):
        assert is_image(Path(f"a{suffix}"))
    assert SUFFIXES[".jfif"].name == SUFFIXES[".jpe"].name == "jpeg"


@pytest.mark.parametrize("suffix", [".png", ".gif", ".webp"])
def test_animations_give_their_first_frame_with_a_note(tmp_path, suffix):
    frames = [Image.fromarray(photo(20, 24, seed=seed)) for seed in range(3)]
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **options)
    raster = open_raster(path)
    assert "first of 3 frames" in raster.notes
    expected = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(in_memory(raster).array[..., :3], expected)


def test_the_list_of_formats_tells_what_can_be_read_and_written():
    lines = describe_formats().splitlines()
    found = {line.split("  ")[0].strip(): line for line in lines}
    assert "read and written" in found["PNG"] and ".jfif" in found["JPEG"]
    assert "written" not in found["GIF"]
    assert ("built without" in found["JPEG XL"]) == (not pyvips.type_find("VipsOperation", "jxlload"))


def test_heic_is_read_where_its_package_is_installed_and_named_otherwise(tmp_path):
    line = next(line for line in describe_formats().splitlines() if line.startswith("HEIC"))
    if find_spec("pillow_heif") is None:
        (tmp_path / "a.heic").write_bytes(b"\0\0\0\x1cftypheic" + bytes(100))
        advice = 'HEIC needs pillow-heif: pip install "cabm[heic]"'
        assert advice in line and advice in refusal(tmp_path / "a.heic")
        assert left_out(find_images(tmp_path).unsupported) == (
            'left out 1 file: 1 .heic (not supported; HEIC needs pillow-heif: pip install "cabm[heic]")'
        )
        return
    from pillow_heif import from_pillow

    y, x = np.mgrid[:64, :96]
    array = np.stack([x * 2, y * 3, x + y], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[271] = "Maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(array)
    image.info["icc_profile"] = profile
    from_pillow(image).save(tmp_path / "a.heic", quality=100, exif=exif.tobytes())
    raster = in_memory(open_raster(tmp_path / "a.heic"))
    assert np.abs(raster.array.astype(int) - array).max() <= 8
    assert raster.metadata.icc == profile and b"Maker" in raster.metadata.exif
    assert "read" in line and "written" not in line
    assert find_images(tmp_path).images == (tmp_path / "a.heic",)


def test_avif_is_known_by_any_of_its_brands(tmp_path):
    pyvips.Image.new_from_array(photo(20, 30)).heifsave(str(tmp_path / "a.avif"), compression="av1")
    content = (tmp_path / "a.avif").read_bytes()
    assert content[8:12] == b"avif" and b"avif" in content[16:40]
    (tmp_path / "b.avif").write_bytes(content[:8] + b"mif1" + content[12:])
    first, second = (in_memory(open_raster(tmp_path / name)).array for name in ("a.avif", "b.avif"))
    np.testing.assert_array_equal(first, second)


def png_with(path: Path, *chunks: tuple[bytes, bytes]) -> Path:
    """Save a PNG with chunks behind its header."""
    Image.fromarray(photo(8, 9)).save(path)
    content = path.read_bytes()
    added = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    path.write_bytes(content[:33] + added + content[33:])
    return path


GAMMA_1, GAMMA_SRGB = (b"gAMA", struct.pack(">I", 100_000)), (b"gAMA", struct.pack(">I", 45_455))
WIDE = (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
USUAL = (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
SRGB_CHUNK = (b"sRGB", b"\0")


@pytest.mark.parametrize(
    ("chunks", "named"),
    [
        ((GAMMA_1,), "gAMA"),
        ((GAMMA_1, WIDE), "gAMA and cHRM"),
        ((GAMMA_SRGB, WIDE), "cHRM"),
        (((b"cICP", bytes([9, 16, 0, 1])), SRGB_CHUNK), "cICP"),  # stronger than sRGB (PNG 3, 4.3)
        (((b"cICP", bytes([1, 13, 0, 1])),), ""),
        ((GAMMA_SRGB, USUAL), ""),
        ((SRGB_CHUNK, GAMMA_1), ""),
    ],
)
def test_colours_that_a_png_describes_by_other_means_than_a_profile_are_named(tmp_path, chunks, named):
    raster = open_raster(png_with(tmp_path / "a.png", *chunks))
    np.testing.assert_array_equal(in_memory(raster).array, photo(8, 9))
    note = f"colours are taken as sRGB, without the PNG's {named}"
    assert raster.notes == ((note,) if named else ())
