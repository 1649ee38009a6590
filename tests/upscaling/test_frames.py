"""Every page of a TIFF and every frame of an animation is upscaled, as if it were a file of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cabm.errors import InputError
from cabm.imaging import writer
from cabm.imaging.frames import frames_of
from cabm.imaging.mark import is_result
from cabm.imaging.raster import in_memory
from cabm.imaging.reader import open_raster
from cabm.imaging.source import ReadOptions
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
def test_every_frame_of_an_animation_is_upscaled(tmp_path, upscaler, suffix):
    source = animation(tmp_path / f"a{suffix}")
    report = all_frames(upscaler, source, tmp_path / "b.webp", quality=100)
    assert not isinstance(report, Failure), report
    found = frames_of(tmp_path / "b.webp")
    assert (found.number, list(found.animation.durations)) == (3, DURATIONS)
    assert found.animation.loop == frames_of(source).animation.loop
    with Image.open(source) as frames, Image.open(tmp_path / "b.webp") as results:
        for number in range(3):
            frames.seek(number)
            results.seek(number)
            expected = upscaler(np.asarray(frames.convert("RGB")))
            np.testing.assert_array_equal(np.asarray(results.convert("RGB")), expected)
    assert is_result(tmp_path / "b.webp")
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, "b.webp"]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_frames_that_cover_a_part_are_completed(tmp_path, suffix):
    base = np.full((16, 24, 4), (200, 10, 60, 255), np.uint8)
    other = base.copy()
    other[4:8, 4:8, :3] = 0  # the file stores only the difference
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    frames = [Image.fromarray(base), Image.fromarray(other)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **options)
    for number, expected in enumerate((base, other)):
        found = in_memory(open_raster(path, options=ReadOptions(frame=number)))
        assert found.notes == ()
        np.testing.assert_array_equal(found.array[..., :3], expected[..., :3])


def test_the_still_picture_of_a_png_animation_is_no_frame(tmp_path):
    frames = [Image.fromarray(photo(8, 8, seed=seed)) for seed in range(3)]
    path = tmp_path / "a.png"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, default_image=True)
    assert frames_of(path).number == 2
    for number in range(2):
        found = in_memory(open_raster(path, options=ReadOptions(frame=number)))
        np.testing.assert_array_equal(found.array[..., :3], np.asarray(frames[number + 1]))


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (scan, "a.tif", r"b\.png: png cannot hold 3 pages \(--all-frames\); use tiff$"),
        (animation, "a.gif", r"b\.png: png cannot hold 3 frames \(--all-frames\); use webp or tiff$"),
    ],
)
def test_formats_that_hold_one_picture_are_refused(tmp_path, upscaler, make, name, message):
    make(tmp_path / name)
    failure = all_frames(upscaler, tmp_path / name, tmp_path / "b.png")
    assert isinstance(failure, Failure)
    with pytest.raises(InputError, match=message):
        raise InputError(failure.reason)
    assert not (tmp_path / "b.png").exists()


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
