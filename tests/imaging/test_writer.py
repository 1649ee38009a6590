from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageCms

from cabm.errors import InputError
from cabm.imaging import writer
from cabm.imaging.formats import OUTPUT_FORMATS
from cabm.imaging.raster import in_memory
from cabm.imaging.reader import open_raster
from cabm.imaging.writer import OutputSpec, image_writer
from tests.upscaling.helpers import photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def write(path, array, **fields):
    height, width, channels = array.shape
    spec = OutputSpec(height, width, channels, 8 * array.itemsize, **fields)
    with image_writer(path, spec) as push:
        for top in range(0, height, 7):
            push(array[top : top + 7])
    return spec


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("file_format", ["png", "tiff"])
def test_written_files_are_read_exactly(tmp_path, file_format, channels, dtype):
    array = photo(31, 45, channels, dtype)
    path = tmp_path / f"ä{OUTPUT_FORMATS[file_format].suffix}"
    assert write(path, array, format=file_format).notes == ()
    raster = open_raster(path)
    assert raster.dtype == dtype
    np.testing.assert_array_equal(in_memory(raster).array, array)
    if dtype == np.uint8:  # and by another library
        np.testing.assert_array_equal(np.asarray(Image.open(path)).reshape(array.shape), array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lossy_formats_are_close_and_note_what_they_cannot_store(tmp_path, dtype):
    array = photo(32, 48, 3, dtype)
    eight = array if dtype == np.uint8 else np.round(array / 257).astype(np.uint8)
    for file_format in ("jpeg", "webp"):
        path = tmp_path / f"a{OUTPUT_FORMATS[file_format].suffix}"
        spec = write(path, array, format=file_format, quality=100)
        found = np.asarray(Image.open(path)).astype(int)
        assert np.abs(found - eight).mean() < 1.5
        assert bool(spec.notes) == (dtype == np.uint16)


def test_jpeg_blends_transparency_with_white(tmp_path):
    array = photo(32, 48, 4)
    spec = write(tmp_path / "a.jpg", array, format="jpeg")
    assert spec.notes == ("jpeg has no transparency: blended with white",)
    hole = array[..., 3] == 0
    assert np.asarray(Image.open(tmp_path / "a.jpg"))[hole].mean() > 240


def test_quality_decides_the_size(tmp_path):
    for file_format in ("jpeg", "webp"):
        sizes = []
        for quality in (30, 95):
            path = tmp_path / f"{quality}{OUTPUT_FORMATS[file_format].suffix}"
            write(path, photo(64, 64), format=file_format, quality=quality)
            sizes.append(path.stat().st_size)
        assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize("file_format", ["png", "tiff", "webp", "jpeg", "avif"])
def test_profile_resolution_and_exif_are_kept(tmp_path, file_format):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    source = tmp_path / "source.jpg"
    Image.fromarray(photo(16, 24)).save(source, exif=exif, icc_profile=SRGB, dpi=(300, 300))
    raster = open_raster(source)
    path = tmp_path / f"a{OUTPUT_FORMATS[file_format].suffix}"
    write(path, in_memory(raster).array, format=file_format, metadata=raster.metadata)
    with Image.open(path) as written:
        assert written.size == (16, 24)  # turned
        assert written.info["icc_profile"] == SRGB
        assert written.getexif().get(0x0112, 1) == 1
        if file_format not in ("webp", "avif"):
            np.testing.assert_allclose([float(value) for value in written.info["dpi"]], 300, rtol=1e-3)
        assert written.getexif()[0x010F] == "Maker"


def test_tiff_files_above_four_gigabytes_are_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr("cabm.imaging.writer._BIG_TIFF_BYTES", 1000)
    write(tmp_path / "a.tif", photo(40, 30), format="tiff")
    assert (tmp_path / "a.tif").read_bytes()[:4] == b"II+\0"
    np.testing.assert_array_equal(in_memory(open_raster(tmp_path / "a.tif")).array, photo(40, 30))


def test_an_unfinished_image_leaves_no_file(tmp_path):
    spec = OutputSpec(30, 20, 3)
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), image_writer(tmp_path / "a.png", spec) as push:
            push(photo(10, 20))
            raise error
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "encode"]


def test_an_interrupt_while_the_encoder_finishes_leaves_no_file(tmp_path, monkeypatch):
    saver = writer._saver

    def slow(spec):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        return saver(spec)  # only then is the file opened

    monkeypatch.setattr(writer, "_saver", slow)
    # a background shell starts its processes with this signal ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "a.png", photo(8, 8))
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "encode"]


def test_an_interrupted_image_keeps_the_old_file(tmp_path):
    write(tmp_path / "a.png", photo(8, 8))
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(RuntimeError), image_writer(tmp_path / "a.png", OutputSpec(9, 9, 3)):
        raise RuntimeError
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_full_disk_is_reported_in_one_line_that_names_the_file(tmp_path, monkeypatch):
    import pyvips

    def full(*_, **__):
        raise pyvips.Error("unable to call pngsave", "write: No space left on device")

    monkeypatch.setattr(pyvips.Image, "pngsave", full, raising=False)
    path = tmp_path / "a.png"
    with (
        pytest.raises(InputError, match="No space left"),
        image_writer(path, OutputSpec(4000, 900, 3)) as push,
    ):
        for _ in range(400):
            push(photo(10, 900))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_image_is_not_kept_in_memory(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("cabm.imaging.writer._saver", full)
    array = np.zeros((2000, 2000, 3), np.uint8)
    kept = weakref.ref(array)
    gc.disable()  # only the garbage collector would free a cycle
    try:
        with suppress(InputError):
            write(tmp_path / "a.png", array, format="png")
        del array
        assert kept() is None
    finally:
        gc.enable()


def test_sides_that_are_too_long_for_a_format_are_refused(tmp_path):
    for file_format, side in (("webp", 16384), ("jpeg", 65501)):
        spec = OutputSpec(10, side, 3, format=file_format)
        with pytest.raises(InputError, match="use --format png or tiff"):
            spec.check(tmp_path / "a")
