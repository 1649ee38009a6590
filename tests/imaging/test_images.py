"""Image files of every kind, and damaged ones."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from cabm.errors import InputError
from cabm.imaging.images import read_rgb8, write_image

LOSSLESS = (".png", ".tif", ".tiff", ".bmp")
ORIENTATION = 0x0112


def picture(height: int = 6, width: int = 9, *channels: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def smooth(height: int = 40, width: int = 56) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * y, 4 * x, 2 * (y + x)], axis=2).astype(np.uint8)


def refused(path: Path, max_pixels: int = 10**6) -> str:
    """Return the error message, which must be one line that names the file."""
    with pytest.raises(InputError) as caught:
        read_rgb8(path, max_pixels)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """Return a PNG file whose chunks have valid checksums, whatever their content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_formats_round_trip(tmp_path, suffix):
    image = picture(6, 9, 3)
    write_image(tmp_path / f"a{suffix}", image)
    found = read_rgb8(tmp_path / f"a{suffix}")
    assert found.dtype == np.uint8
    assert_array_equal(found, image)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG", ".webp"])
def test_lossy_formats_are_close(tmp_path, suffix):
    write_image(tmp_path / f"a{suffix}", smooth())
    found = read_rgb8(tmp_path / f"a{suffix}")
    assert np.abs(found.astype(int) - smooth()).mean() < 4


def test_gray_is_repeated(tmp_path):
    gray = picture()
    for suffix in LOSSLESS:
        write_image(tmp_path / f"a{suffix}", gray)
        assert_array_equal(read_rgb8(tmp_path / f"a{suffix}"), np.stack([gray] * 3, axis=2))


def test_alpha_is_dropped(tmp_path):
    image = picture(6, 9, 4)
    write_image(tmp_path / "rgba.png", image)
    assert_array_equal(read_rgb8(tmp_path / "rgba.png"), image[..., :3])
    Image.fromarray(image[..., :2].copy(), "LA").save(tmp_path / "la.png")
    assert_array_equal(read_rgb8(tmp_path / "la.png"), np.stack([image[..., 0]] * 3, axis=2))


def test_palettes_and_bits_are_expanded(tmp_path):
    indices, colours = picture() % 16, picture(16, 3)
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "palette.png")
    assert_array_equal(read_rgb8(tmp_path / "palette.png"), colours[indices])
    image.save(tmp_path / "transparent.png", transparency=3)
    assert_array_equal(read_rgb8(tmp_path / "transparent.png"), colours[indices])
    bits = picture() > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert_array_equal(read_rgb8(tmp_path / "bits.png"), np.stack([bits * 255] * 3, axis=2))


def test_cmyk_is_converted(tmp_path):
    Image.fromarray(smooth()).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_rgb8(tmp_path / "a.jpg").astype(int) - smooth()).mean() < 40  # inks are no screens


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_gray_of_16_bits_is_rounded(tmp_path, suffix):
    deep = np.array([[0, 128, 129, 257], [385, 386, 65406, 65535]], np.uint16)
    cv2.imwrite(str(tmp_path / f"a{suffix}"), deep)
    found = read_rgb8(tmp_path / f"a{suffix}")
    assert_array_equal(found, np.stack([[[0, 0, 1, 1], [1, 2, 254, 255]]] * 3, axis=2))


def test_gray_of_16_bits_has_either_byte_order(tmp_path):
    deep = np.array([[0, 1000], [30000, 65535]], np.uint16)
    expected = np.stack([np.rint(deep / 257)] * 3, axis=2)
    for order in "<>":
        mode = "I;16" if order == "<" else "I;16B"
        Image.frombytes(mode, (2, 2), deep.astype(f"{order}u2").tobytes()).save(tmp_path / "a.tif")
        assert_array_equal(read_rgb8(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colours_of_16_bits_become_8(tmp_path, suffix):
    image = picture(6, 9, 3)
    cv2.imwrite(str(tmp_path / f"a{suffix}"), image[..., ::-1].astype(np.uint16) * 257)
    assert_array_equal(read_rgb8(tmp_path / f"a{suffix}"), image)
    cv2.imwrite(str(tmp_path / f"a{suffix}"), np.full((2, 2, 3), 0x12FF, np.uint16))
    assert (read_rgb8(tmp_path / f"a{suffix}") == 0x13).all()  # rounded


def test_tiff_colours_in_planes_are_read(tmp_path):
    image = picture(6, 9, 3)
    planes = {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "8.tif", image.transpose(2, 0, 1), **planes)
    assert_array_equal(read_rgb8(tmp_path / "8.tif"), image)
    tifffile.imwrite(tmp_path / "16.tif", image.transpose(2, 0, 1).astype(np.uint16) * 257, **planes)
    assert_array_equal(read_rgb8(tmp_path / "16.tif"), image)


def test_floating_point_is_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    assert "no known range" in refused(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, np.fliplr),
        (3, lambda x: np.rot90(x, 2)),
        (4, np.flipud),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).swapaxes(0, 1)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_applied(tmp_path, suffix, orientation, upright):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if suffix == ".webp" else {"quality": 100} if suffix == ".jpg" else {}
    Image.fromarray(smooth()).save(tmp_path / f"a{suffix}", exif=exif, **options)
    found, expected = read_rgb8(tmp_path / f"a{suffix}"), upright(smooth())
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (8 if suffix == ".jpg" else 0)


def test_exif_orientation_of_16_bits_is_applied(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    gray = picture()
    deep = Image.frombytes("I;16", (9, 6), (gray.astype("<u2") * 257).tobytes())
    deep.save(tmp_path / "a.png", exif=exif)
    assert_array_equal(read_rgb8(tmp_path / "a.png"), np.stack([np.rot90(gray, -1)] * 3, axis=2))


def test_the_first_of_several_frames_is_read(tmp_path):
    frames = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (10, 20)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert (read_rgb8(tmp_path / "a.tif") == 10).all()


def test_missing_files_and_folders_are_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "absent.png")
    assert "is a folder" in refused(tmp_path)


def test_empty_files_are_refused(tmp_path):
    (tmp_path / "a.png").touch()
    assert "empty" in refused(tmp_path / "a.png")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"GET / HTTP/1.1\r\n\r\n" * 50)
    assert "not an image" in refused(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif"])
def test_truncated_files_are_refused(tmp_path, suffix):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    write_image(tmp_path / f"whole{suffix}", image)
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for size in (3, 40, len(whole) // 2, len(whole) - 100):
        cut.write_bytes(whole[:size])
        refused(cut)


def test_decompression_bombs_are_refused_by_their_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60_000, 60_000, bytes(1000)))
    assert "60000 x 60000 pixels are more than the limit of 256000000" in refused(path, 256_000_000)
    limit = Image.MAX_IMAGE_PIXELS
    path.write_bytes(png(3, 2, bytes(2 * 10)))
    assert read_rgb8(path, 6).shape == (2, 3, 3)
    assert "3 x 2 pixels are more than the limit of 5" in refused(path, 5)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_images_without_pixels_are_refused(tmp_path):
    path = tmp_path / "a.png"
    for size in ((0, 5), (5, 0)):
        path.write_bytes(png(*size))
        refused(path)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("encoded")
    for suffix in (".png", ".jpg", ".webp", ".bmp", ".tif"):
        write_image(folder / f"a{suffix}", smooth(16, 20))
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@given(
    st.sampled_from([".png", ".jpg", ".webp", ".bmp", ".tif"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_are_read_or_refused_in_one_line(tmp_path, encoded, suffix, damage):
    content = bytearray(encoded[suffix])
    for place, value in damage:
        content[int(place * len(content))] = value
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    try:
        found = read_rgb8(path, max_pixels=10**6)
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3


def test_unknown_suffixes_are_refused_when_writing(tmp_path):
    for name in ("a.gif", "a", "a.png.txt"):
        with pytest.raises(InputError, match="cannot write images as"):
            write_image(tmp_path / name, picture())
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "a.png"
    write_image(path, picture())
    before = path.read_bytes()

    def fail(self, file, *args, **kwargs):
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space"):
        write_image(path, picture())
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_written_files_have_ordinary_permissions(tmp_path):
    write_image(tmp_path / "a.png", picture())
    (tmp_path / "other").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())).format == "PNG"
