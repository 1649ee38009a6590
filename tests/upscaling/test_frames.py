"""Every page of a TIFF and every frame of an animation is upscaled, as if it were a file of its own."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cabm.imaging import writer
from cabm.imaging.apng import join_frames
from cabm.imaging.frames import frames_of, pictures
from cabm.imaging.mark import is_result
from cabm.imaging.png_chunks import SIGNATURE, chunk
from cabm.imaging.raster import in_memory, rounded_to_8_bits
from cabm.imaging.reader import open_raster
from cabm.imaging.source import ReadOptions
from cabm.imaging.writer import Animation
from cabm.upscaling.jobs import Failure, run_job, run_task, survey
from cabm.upscaling.request import UpscaleRequest
from cabm.upscaling.tasks import Task, plan_tasks
from cabm.upscaling.upscaler import Upscaler
from tests.upscaling.helpers import photo, tiny_model

DURATIONS = [40, 200, 1000]


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory) -> Upscaler:
    return Upscaler.load(tiny_model(tmp_path_factory.mktemp("model") / "m"), engine="float", device="cpu")


def scan(path: Path) -> list[np.ndarray]:
    """Save pages of different sizes and kinds, behind a thumbnail."""
    pages = [photo(20, 30), photo(26, 18, 1, np.uint16), photo(9, 40, 1)]
    with tifffile.TiffWriter(path) as file:
        file.write(photo(4, 6), photometric="rgb", subfiletype=1)
        for number, page in enumerate(pages):
            kind = "rgb" if page.shape[2] == 3 else "minisblack"
            file.write(page.squeeze(), photometric=kind, description=f"page {number}", metadata=None)
    return pages


def animation(path: Path, size: tuple[int, int] = (20, 30)) -> Path:
    frames = [Image.fromarray(photo(*size, seed=seed)).quantize(32).convert("RGB") for seed in range(3)]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=DURATIONS, loop=3, **options)
    return path


def all_frames(upscaler: Upscaler, source: Path, output: Path, **how) -> object:
    return run_task(upscaler, Task(source, output), UpscaleRequest(all_frames=True, **how))


@pytest.mark.parametrize("big", [False, True])
def test_every_page_of_a_scan_is_upscaled(tmp_path, upscaler, monkeypatch, big):
    if big:
        monkeypatch.setattr(writer, "_BIG_TIFF_BYTES", 0)
    pages = scan(tmp_path / "a.tif")
    done, reports = [], []
    request = UpscaleRequest(all_frames=True)
    found = survey(upscaler, [Task(tmp_path / "a.tif", tmp_path / "b.tif")], request)
    on_done = {"on_tiles": done.append, "on_done": lambda task, report: reports.append(report)}
    assert run_job(upscaler, found, request, **on_done) == ()
    assert reports[0].notes[0] == "3 pictures"
    assert sum(done) == sum(len(upscaler.plan(*page.shape[:2])) for page in pages)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.is_bigtiff == big
        found = [page.asarray() for page in file.pages]
        assert [page.description for page in file.pages] == ["page 0", "page 1", "page 2"]
    for page, result in zip(pages, found, strict=True):
        np.testing.assert_array_equal(result.reshape(*result.shape[:2], -1), upscaler(page))
    assert is_result(tmp_path / "b.tif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif"]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
@pytest.mark.parametrize("result", ["b.webp", "b.png", "b.apng"])
def test_every_frame_of_an_animation_is_upscaled(tmp_path, upscaler, suffix, result):
    source, result = animation(tmp_path / f"a{suffix}"), tmp_path / result
    report = all_frames(upscaler, source, result, quality=100)
    assert not isinstance(report, Failure), report
    found = frames_of(result)
    assert (found.number, list(found.animation.durations)) == (3, DURATIONS)
    assert found.animation.loop == frames_of(source).animation.loop
    with Image.open(source) as frames, Image.open(result) as results:
        assert results.n_frames == 3
        for number in range(3):
            frames.seek(number)
            results.seek(number)
            expected = upscaler(np.asarray(frames.convert("RGB")))
            np.testing.assert_array_equal(np.asarray(results.convert("RGB")), expected)
    assert is_result(result)
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, result.name]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_frames_that_cover_a_part_are_completed(tmp_path, suffix):
    base = np.full((16, 24, 4), (200, 10, 60, 255), np.uint8)
    other = base.copy()
    other[4:8, 4:8, :3] = 0  # the file stores only the difference
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    frames = [Image.fromarray(base), Image.fromarray(other)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **options)
    found = list(pictures(path, frames_of(path), ReadOptions()))
    for frame, expected in zip(found, (base, other), strict=True):
        assert frame.notes == ()
        np.testing.assert_array_equal(in_memory(frame).array[..., :3], expected[..., :3])


def test_the_still_picture_of_a_png_animation_is_no_frame(tmp_path):
    frames = [Image.fromarray(photo(8, 8, seed=seed)) for seed in range(3)]
    path = tmp_path / "a.png"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, default_image=True)
    assert frames_of(path).number == 2
    for found, expected in zip(pictures(path, frames_of(path), ReadOptions()), frames[1:], strict=True):
        np.testing.assert_array_equal(in_memory(found).array[..., :3], np.asarray(expected))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
@pytest.mark.parametrize("result", ["b.png", "b.webp", "b.tif"])
def test_transparency_of_frames_is_kept(tmp_path, upscaler, suffix, result):
    frames = []
    for seed in range(3):
        pixels = np.dstack([photo(16, 24, seed=seed), np.full((16, 24), 255, np.uint8)])
        pixels[4 : 8 + seed, 4:8, 3] = 0
        frames.append(Image.fromarray(pixels).quantize(32).convert("RGBA"))
    source = tmp_path / f"a{suffix}"
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    frames[0].save(source, save_all=True, append_images=frames[1:], duration=100, disposal=2, **options)
    report = all_frames(upscaler, source, tmp_path / result, quality=100)
    assert not isinstance(report, Failure), report
    with Image.open(source) as originals, Image.open(tmp_path / result) as results:
        for number in range(3):
            originals.seek(number)
            results.seek(number)
            expected = upscaler(originals.convert("RGBA"))
            assert 0 < np.count_nonzero(expected[..., 3] == 0) < expected[..., 3].size / 2
            found = np.asarray(results.convert("RGBA"))
            np.testing.assert_array_equal(found[..., 3], expected[..., 3])
            visible = expected[..., 3] > 0
            np.testing.assert_array_equal(found[visible], expected[visible])


def apng_of_gray(path: Path, pixels: list[np.ndarray]) -> Path:
    """Save frames of 16-bit gray, which Pillow does not write."""
    bits = 8 * pixels[0].itemsize
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", *pixels[0].shape[::-1], bits, 0, 0, 0, 0))]
    parts.append(chunk(b"acTL", struct.pack(">II", len(pixels), 0)))
    sequence = iter(range(100))
    for number, frame in enumerate(pixels):
        size = struct.pack(">II", *frame.shape[::-1]) + bytes(8)
        parts.append(chunk(b"fcTL", struct.pack(">I", next(sequence)) + size + b"\0\1\0\x1e\0\0"))
        rows = b"".join(b"\0" + row.astype(frame.dtype.newbyteorder(">")).tobytes() for row in frame)
        data = zlib.compress(rows)
        sequenced = struct.pack(">I", next(sequence)) + data if number else data
        parts.append(chunk(b"fdAT" if number else b"IDAT", sequenced))
    path.write_bytes(SIGNATURE + b"".join(parts) + chunk(b"IEND", b""))
    return path


def test_frames_of_16_bits_are_rounded_with_a_note(tmp_path, upscaler):
    pixels = [photo(16, 24, 1, np.uint16, seed=seed)[..., 0] for seed in range(3)]
    report = all_frames(upscaler, apng_of_gray(tmp_path / "a.png", pixels), tmp_path / "b.png")
    assert not isinstance(report, Failure), report
    assert report.notes == ("3 pictures", "frames of 16 bits are read with 8")
    with Image.open(tmp_path / "b.png") as results:
        for number, frame in enumerate(pixels):
            results.seek(number)
            rounded = rounded_to_8_bits(frame)
            expected = upscaler(np.dstack([rounded] * 3))
            np.testing.assert_array_equal(np.asarray(results.convert("RGB")), expected)


def test_rounded_durations_have_the_right_sum(tmp_path):
    source = apng_of_gray(tmp_path / "a.png", [np.zeros((8, 8), np.uint8)] * 7)  # 1/30 of a second each
    assert frames_of(source).animation.durations == (33, 34, 33, 33, 34, 33, 33)


def test_an_animation_that_lost_frames_is_refused(tmp_path, upscaler):
    source = apng_of_gray(tmp_path / "a.png", [np.zeros((8, 8), np.uint8)] * 3)
    data = source.read_bytes()
    source.write_bytes(data[: data.rindex(b"fcTL") - 4])  # between two frames, where no decoder notices
    failure = all_frames(upscaler, source, tmp_path / "b.png")
    assert "a.png: the image is corrupt or truncated (2 of 3 frames)" in failure.reason
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_animations_of_many_chunks_are_read_to_the_end(tmp_path):
    source = apng_of_gray(tmp_path / "a.png", [np.zeros((8, 8), np.uint8)] * 3)
    head, end = source.read_bytes().split(chunk(b"IEND", b""))
    first = head.index(b"fcTL", head.index(b"fcTL") + 1) - 4
    many = chunk(b"abCd", b"") * 200_000  # a film at full size has more
    source.write_bytes(head[:first] + many + head[first:] + chunk(b"IEND", b"") + end)
    assert frames_of(source).number == 3


def test_frames_of_an_animation_are_joined_chunk_by_chunk(tmp_path):
    frames = [photo(8, 8, 4, seed=seed) for seed in range(2)]

    def pngs():
        for frame in frames:
            Image.fromarray(frame).save(tmp_path / "one.png", dpi=(300, 300))
            yield tmp_path / "one.png"

    join_frames(pngs(), tmp_path / "a.png", Animation((70_000, 20), 2))
    animation = frames_of(tmp_path / "a.png").animation
    assert animation == Animation((70_000, 20), 2)
    with Image.open(tmp_path / "a.png") as found:
        assert round(found.info["dpi"][0]) == 300
        for number, frame in enumerate(frames):
            found.seek(number)
            np.testing.assert_array_equal(np.asarray(found), frame)


def test_an_animation_as_pages_loses_its_durations_with_a_note(tmp_path, upscaler):
    report = all_frames(upscaler, animation(tmp_path / "a.gif"), tmp_path / "b.tif")
    assert report.notes == ("3 pictures", "tiff cannot hold durations: left out")


@pytest.mark.parametrize(
    ("make", "name", "output", "message"),
    [
        (scan, "a.tif", "b.png", "b.png: png cannot hold 3 pages (--all-frames); use tiff"),
        (scan, "a.tif", "b.webp", "b.webp: webp cannot hold 3 pages (--all-frames); use tiff"),
        (
            animation,
            "a.gif",
            "b.jpg",
            "b.jpg: jpeg cannot hold 3 frames (--all-frames); use webp, png or tiff",
        ),
    ],
)
def test_formats_that_hold_one_picture_are_refused(tmp_path, upscaler, make, name, output, message):
    make(tmp_path / name)
    failure = all_frames(upscaler, tmp_path / name, tmp_path / output)
    assert isinstance(failure, Failure)
    assert failure.reason.endswith(message)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_results_are_named_by_what_holds_all_pictures(tmp_path):
    scan(tmp_path / "a.tif")
    animation(tmp_path / "b.gif")
    Image.fromarray(photo(8, 8)).save(tmp_path / "c.tif")
    names = [task.output.name for task in plan_tasks([tmp_path], None, scale=2, all_frames=True)]
    assert names == ["a_x2.tif", "b_x2.webp", "c_x2.png"]
    names = [task.output.name for task in plan_tasks([tmp_path], None, scale=2)]
    assert names == ["a_x2.png", "b_x2.png", "c_x2.png"]


def test_the_note_on_the_first_picture_names_the_option(tmp_path):
    scan(tmp_path / "a.tif")
    animation(tmp_path / "b.gif")
    for name, kind in (("a.tif", "pages"), ("b.gif", "frames")):
        raster = open_raster(tmp_path / name, options=UpscaleRequest().read_options)
        assert f"first of 3 {kind}; --all-frames takes all" in raster.notes
        assert any(note == f"first of 3 {kind}" for note in open_raster(tmp_path / name).notes)


def test_a_page_that_cannot_be_read_leaves_no_file(tmp_path, upscaler):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(photo(8, 8), photometric="rgb")
        file.write(photo(8, 8).astype(np.float32), photometric="rgb")
    failure = all_frames(upscaler, tmp_path / "a.tif", tmp_path / "b.tif")
    assert "floating-point" in failure.reason
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
