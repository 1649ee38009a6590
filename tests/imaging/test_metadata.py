"""What image files store besides pixels survives in every format that can hold it."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from cabm.imaging import metadata as metadata_module
from cabm.imaging.formats import OUTPUT_FORMATS, missing_operation
from cabm.imaging.mark import is_result
from cabm.imaging.metadata import Metadata, iptc_records, photoshop_block
from cabm.imaging.raster import in_memory
from cabm.imaging.reader import open_raster
from cabm.imaging.source import ReadOptions
from cabm.imaging.writer import OutputSpec, image_writer
from tests.upscaling.helpers import photo

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
IPTC = b"\x1c\x02\x05\0\x05Title"
FORMATS = [name for name, entry in OUTPUT_FORMATS.items() if missing_operation(entry, "save") is None]
MAKE, ARTIST, ORIENTATION, EXIF_IFD, GPS_IFD = 271, 315, 274, 34665, 34853
EXPOSURE, WIDTH, LATITUDE = 33434, 0xA002, 2


def exif_with_thumbnail() -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE], exif[ARTIST] = 6, "Maker", "Painter"
    exif.get_ifd(EXIF_IFD)[EXPOSURE] = 0.01
    exif.get_ifd(EXIF_IFD)[WIDTH] = 24
    exif.get_ifd(GPS_IFD)[LATITUDE] = (50.0, 6.0, 7.5)
    block = bytearray(exif.tobytes())
    # IFD1 with its own orientation and a thumbnail
    thumbnail = io.BytesIO()
    Image.fromarray(photo(8, 12)).save(thumbnail, "jpeg")
    tiff = block[6:]
    order = "<" if tiff[:2] == b"II" else ">"
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, first)
    struct.pack_into(f"{order}I", tiff, first + 2 + 12 * count, len(tiff))
    data = len(tiff) + 2 + 3 * 12 + 4
    tiff += struct.pack(f"{order}H", 3) + struct.pack(f"{order}HHIHH", ORIENTATION, 3, 1, 6, 0)
    tiff += struct.pack(f"{order}HHII", 513, 4, 1, data)
    tiff += struct.pack(f"{order}HHII", 514, 4, 1, len(thumbnail.getvalue())) + bytes(4)
    return bytes(block[:6] + tiff) + thumbnail.getvalue()


@pytest.fixture
def photograph(tmp_path):
    """Return a turned JPEG with EXIF and its thumbnail, XMP, IPTC and a resolution."""
    path = tmp_path / "photograph.jpg"
    Image.fromarray(photo(16, 24)).save(path, exif=exif_with_thumbnail(), xmp=XMP, dpi=(300, 300))
    content = path.read_bytes()
    block = photoshop_block(IPTC)
    segment = b"\xff\xed" + struct.pack(">H", len(block) + 2) + block
    path.write_bytes(content[:2] + segment + content[2:])
    return path


def upscaled(source, path, scale: int = 2, *, strip: bool = False) -> OutputSpec:
    """Write a larger image with the metadata of a file, as an upscaler does."""
    raster = open_raster(source, options=ReadOptions(to_srgb=strip))
    array = in_memory(raster).array.repeat(scale, axis=0).repeat(scale, axis=1)
    file_format = next(name for name, entry in OUTPUT_FORMATS.items() if path.suffix in entry.suffixes)
    kept = Metadata() if strip else raster.metadata.scaled(scale, scale)
    spec = OutputSpec(*array.shape, bits=8 * array.itemsize, format=file_format, metadata=kept, strip=strip)
    with image_writer(path, spec) as write:
        write(array)
    return spec


@pytest.mark.parametrize("file_format", FORMATS)
def test_exif_is_kept_upright_and_without_its_thumbnail(tmp_path, photograph, file_format):
    path = tmp_path / f"a{OUTPUT_FORMATS[file_format].suffix}"
    upscaled(photograph, path)
    with Image.open(path) as image:
        assert image.size == (32, 48)
        exif = image.getexif()
        assert (exif[MAKE], exif[ARTIST]) == ("Maker", "Painter")
        assert exif.get(ORIENTATION, 1) == 1
        assert float(exif.get_ifd(EXIF_IFD)[EXPOSURE]) == pytest.approx(0.01)
        assert exif.get_ifd(EXIF_IFD)[WIDTH] == 32
        assert [float(part) for part in exif.get_ifd(GPS_IFD)[LATITUDE]] == [50, 6, 7.5]
        if file_format != "tiff":
            assert not exif.get_ifd(1)  # IFD1
    again = open_raster(path).metadata
    assert b"Maker" in again.exif and b"Painter" in again.exif


@pytest.mark.parametrize("file_format", FORMATS)
def test_exif_of_a_tiff_reaches_every_format(tmp_path, photograph, file_format):
    upscaled(photograph, tmp_path / "between.tif")
    path = tmp_path / f"a{OUTPUT_FORMATS[file_format].suffix}"
    upscaled(tmp_path / "between.tif", path)
    with Image.open(path) as image:
        assert image.getexif()[MAKE] == "Maker"
        assert float(image.getexif().get_ifd(EXIF_IFD)[EXPOSURE]) == pytest.approx(0.01)


@pytest.mark.parametrize("file_format", FORMATS)
def test_xmp_and_iptc_are_kept_or_named(tmp_path, photograph, file_format):
    path = tmp_path / f"a{OUTPUT_FORMATS[file_format].suffix}"
    spec = upscaled(photograph, path)
    found = open_raster(path).metadata
    assert found.xmp == XMP.replace(b'"6"', b'"1"')
    if file_format in ("jpeg", "tiff"):
        assert found.iptc == IPTC
        assert spec.notes == ()
    else:
        assert spec.notes == (f"{file_format} cannot hold IPTC: left out",)


def test_photoshop_resources_are_skipped_up_to_iptc():
    other = struct.pack(">4sHB3sI", b"8BIM", 1005, 2, b"ab\0", 3) + b"xyz\0"
    assert iptc_records(b"Photoshop 3.0\0" + other + photoshop_block(IPTC)[14:]) == IPTC
    assert iptc_records(b"Photoshop 3.0\0" + other) is None
    assert iptc_records(b"Photoshop 3.0\0" + other[:9]) is None


@pytest.mark.parametrize("file_format", FORMATS)
def test_png_text_is_kept_or_named(tmp_path, file_format):
    info = PngInfo()
    info.add_text("Title", "Wörter")
    info.add_text("Comment", "two\nlines", zip=True)
    info.add_itxt("Author", "画家")
    Image.fromarray(photo(16, 24)).save(tmp_path / "source.png", pnginfo=info)
    path = tmp_path / f"a{OUTPUT_FORMATS[file_format].suffix}"
    spec = upscaled(tmp_path / "source.png", path)
    if file_format == "png":
        assert Image.open(path).text["Title"] == "Wörter"
        assert Image.open(path).text["Comment"] == "two\nlines"
        assert Image.open(path).text["Author"] == "画家"
        assert spec.notes == ()
        assert len(open_raster(path).metadata.text) == 3
    else:
        assert spec.notes == (f"{file_format} cannot hold PNG text: left out",)


@pytest.mark.parametrize("is_point", [False, True])
def test_geotiff_pixels_become_smaller(tmp_path, is_point):
    keys = (1, 1, 0, 1, 1025, 0, 1, 2 if is_point else 1)
    tags = [
        (33550, "d", 3, (10.0, 20.0, 0.0), True),
        (33922, "d", 6, (5.0, 7.0, 0.0, 1000.0, 2000.0, 0.0), True),
        (34735, "H", len(keys), keys, True),
        (42113, "s", 0, "-9999", True),
    ]
    source = tmp_path / "a.tif"
    tifffile.imwrite(source, photo(16, 24), photometric="rgb", extratags=tags)
    assert upscaled(source, tmp_path / "b.tif", 4).notes == ()
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        found = {tag.code: tag.value for tag in file.pages[0].tags}
    assert found[33550] == (2.5, 5.0, 0.0)
    assert found[34735] == keys
    assert found[42113].strip("\0") == "-9999"
    # the corner of the picture stays where it is
    half = 0.5 if is_point else 0.0
    x = 1000 - (5.0 + half) * 10.0
    i = found[33922][0]
    assert 1000 - (i + half) * 2.5 == x
    assert found[33922][3:5] == (1000.0, 2000.0)
    spec = upscaled(source, tmp_path / "b.png", 4)
    assert "png cannot hold GeoTIFF tags: left out" in spec.notes


def test_a_geotiff_transformation_keeps_the_corner():
    matrix = [10.0, 1.0, 0.0, 100.0, 2.0, -20.0, 0.0, 200.0, *[0.0] * 7, 1.0]
    entry = metadata_module.entry
    keys = entry(3, 1, 1, 0, 1, 1025, 0, 1, 2)
    scaled = Metadata(geo={34264: entry(12, *matrix), 34735: keys}).scaled(2, 2).geo[34264].numbers
    corner = [matrix[row] * -0.5 + matrix[row + 1] * -0.5 + matrix[row + 3] for row in (0, 4)]
    assert [scaled[row] * -0.5 + scaled[row + 1] * -0.5 + scaled[row + 3] for row in (0, 4)] == corner


@pytest.mark.parametrize("file_format", FORMATS)
def test_strip_leaves_nothing_but_pixels_and_the_mark(tmp_path, photograph, file_format):
    path = tmp_path / f"a{OUTPUT_FORMATS[file_format].suffix}"
    assert upscaled(photograph, path, strip=True).notes == ()
    content = path.read_bytes()
    assert not any(word in content for word in (b"Maker", b"xmp:", b"tiff:", b"Title", b"Exif\0\0"))
    assert is_result(path)


def wide_gamut() -> bytes:
    """Return a profile with other primaries than sRGB: sRGB's with red and green exchanged."""
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {}
    (count,) = struct.unpack_from(">I", icc, 128)
    for number in range(count):
        name, offset, _ = struct.unpack_from(">4sII", icc, 132 + 12 * number)
        tags[name] = offset
    red, green = (bytes(icc[tags[name] : tags[name] + 20]) for name in (b"rXYZ", b"gXYZ"))
    icc[tags[b"rXYZ"] : tags[b"rXYZ"] + 20], icc[tags[b"gXYZ"] : tags[b"gXYZ"] + 20] = green, red
    return bytes(icc)


def test_colours_become_srgb_on_request(tmp_path):
    array, profile = photo(16, 24), wide_gamut()  # the time is in the profile
    Image.fromarray(array).save(tmp_path / "a.png", icc_profile=profile)
    kept = open_raster(tmp_path / "a.png")
    np.testing.assert_array_equal(in_memory(kept).array, array)
    assert kept.metadata.icc == profile
    converted = open_raster(tmp_path / "a.png", options=ReadOptions(to_srgb=True))
    assert converted.notes == ("converted to sRGB by its RGB profile",)
    assert converted.metadata.icc is None
    found = in_memory(converted).array
    assert np.abs(found.astype(int) - array[..., [1, 0, 2]]).max() <= 2


def test_srgb_profiles_change_nothing(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(photo(16, 24)).save(tmp_path / "a.png", icc_profile=srgb)
    raster = open_raster(tmp_path / "a.png", options=ReadOptions(to_srgb=True))
    np.testing.assert_array_equal(in_memory(raster).array, photo(16, 24))
    assert raster.notes == ()


def test_damaged_profiles_are_left_out_with_a_note(tmp_path):
    Image.fromarray(photo(16, 24)).save(tmp_path / "a.jpg", icc_profile=b"no profile" * 20)
    raster = open_raster(tmp_path / "a.jpg")
    in_memory(raster)
    assert raster.metadata.icc is None
    assert raster.notes == ("its colour profile is damaged, so colours are taken as sRGB",)
