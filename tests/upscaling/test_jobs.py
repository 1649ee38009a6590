from __future__ import annotations

import errno
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image

from cabm.errors import InputError
from cabm.imaging.mark import is_result
from cabm.upscaling.jobs import Failure, run_job, survey
from cabm.upscaling.request import UpscaleRequest
from cabm.upscaling.size import OutputSize
from cabm.upscaling.tasks import Task, plan_tasks
from cabm.upscaling.upscaler import Upscaler
from tests.upscaling.helpers import photo, tiny_model


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory) -> Upscaler:
    return Upscaler.load(tiny_model(tmp_path_factory.mktemp("model") / "m"), engine="float", device="cpu")


def save(path: Path, height: int = 12, width: int = 15) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(height, width)).save(path)
    return path


def outputs(tasks: list[Task], folder: Path) -> list[str]:
    return sorted(str(task.output.relative_to(folder)) for task in tasks)


def do(upscaler: Upscaler, tasks: list[Task], **how: object) -> tuple[Failure, ...]:
    request = UpscaleRequest(**how)
    return run_job(upscaler, survey(upscaler, tasks, request), request)


def test_results_are_written_beside_their_inputs(tmp_path):
    source = save(tmp_path / "Ünïcode näme.jpg")
    (task,) = plan_tasks([source], None, scale=4)
    assert task == Task(source, tmp_path / "Ünïcode näme_x4.png")
    assert task.format == "png"


def test_one_image_may_name_its_output(tmp_path):
    source = save(tmp_path / "a.jpg")
    assert plan_tasks([source], tmp_path / "b.webp", scale=4)[0].format == "webp"
    assert plan_tasks([source], tmp_path / "b.TIF", scale=4)[0].format == "tiff"
    (task,) = plan_tasks([source], tmp_path / "out", scale=4, file_format="jpeg")
    assert task.output == tmp_path / "out" / "a_x4.jpg"


def test_folders_are_searched_and_keep_their_structure(tmp_path):
    for name in ("a.png", "sub/b.JPG", "sub/deep/c.tiff", "sub/notes.txt", ".hidden.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    tasks = plan_tasks([tmp_path / "in"], tmp_path / "out", scale=2)
    assert outputs(tasks, tmp_path / "out") == ["a_x2.png", "sub/b_x2.png", "sub/deep/c_x2.png"]
    beside = plan_tasks([tmp_path / "in"], None, scale=2)
    assert outputs(beside, tmp_path / "in") == outputs(tasks, tmp_path / "out")


@pytest.mark.parametrize("output", [None, "in", "in/out"])
def test_results_of_an_earlier_run_are_not_upscaled_again(tmp_path, upscaler, output):
    folder = tmp_path / "in"
    save(folder / "a.png")
    save(folder / "a_x2_x2.png")  # named like a result, but its source is missing
    target = None if output is None else tmp_path / output
    first = plan_tasks([folder], target, scale=2)
    assert do(upscaler, first) == ()
    assert plan_tasks([folder], target, scale=2) == first
    assert plan_tasks([folder], target, scale=2, file_format="tiff")[0].output.suffix == ".tif"


@pytest.mark.parametrize("file_format", ["png", "tiff", "webp", "jpeg"])
def test_results_are_known_by_their_mark_in_any_folder(tmp_path, upscaler, file_format):
    save(tmp_path / "a.png")
    lines: list[str] = []
    for output in ("o1", "o2", "o3"):
        tasks = plan_tasks(
            [tmp_path], tmp_path / output, scale=2, file_format=file_format, note=lines.append
        )
        assert [task.source.name for task in tasks] == ["a.png"]
        assert do(upscaler, tasks) == ()
    how = "of earlier runs, by the mark in the metadata"
    assert lines == [f"left out 1 result {how}", f"left out 2 results {how}"]
    renamed = next((tmp_path / "o1").iterdir()).rename(tmp_path / f"b{tasks[0].output.suffix}")
    assert is_result(renamed)
    assert [task.source.name for task in plan_tasks([tmp_path], None, scale=2)] == ["a.png"]
    assert plan_tasks([renamed], None, scale=2)[0].source == renamed  # asked for by name


def test_an_edited_result_is_an_image_of_its_own(tmp_path, upscaler):
    source = save(tmp_path / "a.png")
    assert do(upscaler, plan_tasks([source], tmp_path / "a_x2.png", scale=2)) == ()
    image = pyvips.Image.new_from_file(str(tmp_path / "a_x2.png"))
    image.crop(0, 0, 20, 20).write_to_file(str(tmp_path / "cut.png"))
    assert not is_result(tmp_path / "cut.png")


def test_a_genuine_image_that_is_named_as_a_result_is_upscaled(tmp_path, upscaler):
    save(tmp_path / "rock.jpg")
    genuine = save(tmp_path / "rock_x2.png", 24, 30)  # twice the size, as a result would be
    before = genuine.read_bytes()
    names = ["rock_jpg_x2.png", "rock_x2_x2.png"]
    for overwrite in (True, False):  # the second run finds the results of the first
        tasks = plan_tasks([tmp_path], None, scale=2)
        assert outputs(tasks, tmp_path) == names
        assert do(upscaler, tasks, overwrite=overwrite) == ()
    assert genuine.read_bytes() == before
    assert Image.open(tmp_path / "rock_jpg_x2.png").size == (30, 24)


def test_a_pattern_that_names_results_too_does_not_upscale_them_again(tmp_path, upscaler):
    source = save(tmp_path / "a.png")
    tasks = plan_tasks([source], None, scale=2)
    assert do(upscaler, tasks) == ()
    lines: list[str] = []
    assert plan_tasks([source, tasks[0].output], None, scale=2, note=lines.append) == tasks
    assert lines == ["left out 1 result of earlier runs, by the mark in the metadata"]


def test_hidden_and_system_folders_are_left_out_unless_named(tmp_path):
    save(tmp_path / "sub" / "a.png")
    left = (".git", ".thumbnails", ".Trash-1000", "@eaDir", "__MACOSX", "$RECYCLE.BIN")
    for folder in left:
        save(tmp_path / "sub" / folder / "deep" / "b.png")
    assert [task.source.name for task in plan_tasks([tmp_path], None, scale=2)] == ["a.png"]
    for folder in left:
        (task,) = plan_tasks([tmp_path / "sub" / folder], None, scale=2)
        assert task.source.name == "b.png"


def test_images_that_are_not_supported_are_counted(tmp_path, monkeypatch):
    for name in ("a.PSD", "sub/b.psd", "sub/c.nef", ".git/d.nef", "notes.txt", ".e.psd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"no images .*; left out 3 files: 2 \.psd, 1 \.nef"):
        plan_tasks([tmp_path], None, scale=2)
    save(tmp_path / "f.png")
    lines: list[str] = []
    assert len(plan_tasks([tmp_path], None, scale=2, note=lines.append)) == 1
    assert lines == ["left out 3 files: 2 .psd, 1 .nef (not supported)"]


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    save(tmp_path / "closed" / "b.png")
    scan = os.scandir

    def scandir(path):
        if Path(path).name == "closed":  # root may read any folder
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    lines: list[str] = []
    assert len(plan_tasks([tmp_path], None, scale=2, problem=lines.append)) == 1
    assert lines == [f"{tmp_path / 'closed'}: cannot be read (Permission denied)"]


def test_one_file_named_twice_is_upscaled_once(tmp_path):
    source = save(tmp_path / "a.png")
    assert len(plan_tasks([source, tmp_path / "x" / ".." / "a.png", tmp_path], None, scale=2)) == 1


def test_results_with_the_same_stem_get_different_names(tmp_path, upscaler):
    for name in ("a.png", "a.jpg", "b.png"):
        save(tmp_path / name)
    names = ["a_jpg_x2.png", "a_png_x2.png", "b_x2.png"]
    tasks = plan_tasks([tmp_path], None, scale=2)
    assert outputs(tasks, tmp_path) == names
    assert do(upscaler, tasks) == ()
    assert outputs(plan_tasks([tmp_path], None, scale=2), tmp_path) == names
    other = save(tmp_path / "other" / "b.png")
    with pytest.raises(InputError, match="the results of two inputs get this name"):
        plan_tasks([tmp_path / "b.png", other, tmp_path / "b_png"], tmp_path / "out", scale=2)


@pytest.mark.parametrize(
    ("output", "file_format", "message"),
    [
        ("x.gif", None, "cannot write gif"),
        ("x.jp2", None, "cannot write jp2"),
        ("x.jpge", None, "cannot write jpge; use one of png, .* or make the folder first"),
        ("x.v2", None, "cannot write v2; use one of png, .* or make the folder first"),
        ("x.png", "jpeg", "is named as png, but --format says jpeg"),
        ("taken", None, "is a file of another kind"),
    ],
)
def test_invalid_outputs_are_refused(tmp_path, output, file_format, message):
    (tmp_path / "taken").touch()
    with pytest.raises(InputError, match=message):
        plan_tasks([save(tmp_path / "a.png")], tmp_path / output, scale=2, file_format=file_format)


def test_several_images_do_not_go_into_one_file(tmp_path):
    for inputs in ([tmp_path], [save(tmp_path / "a.png"), save(tmp_path / "b.png")]):
        with pytest.raises(InputError, match="several images cannot go into one file"):
            plan_tasks(inputs, tmp_path / "x.png", scale=2)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="no images in this folder"):
        plan_tasks([tmp_path], None, scale=2)


def test_one_bad_file_does_not_stop_the_others(tmp_path, upscaler):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    broken = save(tmp_path / "c.png", 90, 80)
    broken.write_bytes(broken.read_bytes()[:9000])
    save(tmp_path / "d.png")
    failures = do(upscaler, plan_tasks([tmp_path], tmp_path / "out", scale=2))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_x2.png", "d_x2.png"]
    assert [failure.source.name for failure in failures] == ["b.png", "c.png"]
    assert "not an image" in failures[0].reason
    assert "corrupt or truncated" in failures[1].reason
    assert all("\n" not in failure.reason and not failure.traceback for failure in failures)


def test_an_unexpected_error_stops_only_one_file(tmp_path, upscaler, monkeypatch):
    save(tmp_path / "a.png", 10, 11)
    save(tmp_path / "b.png", 20, 21)
    upscale = Upscaler.start_file

    def sometimes(self, raster, *arguments, **options):
        if raster.height == 10:
            raise ZeroDivisionError("by zero")
        return upscale(self, raster, *arguments, **options)

    monkeypatch.setattr(Upscaler, "start_file", sometimes)
    failures = do(upscaler, plan_tasks([tmp_path], None, scale=2))
    assert [failure.reason for failure in failures] == [f"{tmp_path / 'a.png'}: ZeroDivisionError: by zero"]
    assert failures[0].traceback.startswith("Traceback")
    assert "in sometimes" in failures[0].traceback
    assert (tmp_path / "b_x2.png").exists()


def test_an_interrupted_job_resumes(tmp_path, upscaler):
    for name in "abc":
        save(tmp_path / f"{name}.png")
    tasks = plan_tasks([tmp_path], tmp_path / "out", scale=2)

    def stop(number, task):
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(upscaler, survey(upscaler, tasks, UpscaleRequest()), UpscaleRequest(), on_file=stop)
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert sorted(done) == ["a_x2.png", "b_x2.png"]
    left = survey(upscaler, plan_tasks([tmp_path], tmp_path / "out", scale=2), UpscaleRequest())
    assert [task.source.name for task, _ in left.todo] == ["c.png"]
    assert [task.source.name for task in left.kept] == ["a.png", "b.png"]
    assert run_job(upscaler, left, UpscaleRequest()) == ()
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert now == done | {"c_x2.png": now["c_x2.png"]}


SIZES = {
    "a_x1.5.png": OutputSize(factor=1.5),
    "a_20x17.png": OutputSize(width=20, height=17),
    "a_w22.png": OutputSize(width=22),
    "a_h9.png": OutputSize(height=9),
    "a_max25.png": OutputSize(max_side=25),
    "a_x4.png": OutputSize(passes=2),
}


@pytest.mark.parametrize("strip", [False, True])
def test_results_of_every_size_are_named_kept_and_left_out(tmp_path, upscaler, strip):
    save(tmp_path / "a.png")
    for number, (name, size) in enumerate(SIZES.items()):
        lines: list[str] = []
        for _ in range(2):
            (task,) = plan_tasks([tmp_path], None, scale=2, size=size, note=lines.append)
            assert (task.source.name, task.output.name) == ("a.png", name)
            assert do(upscaler, [task], size=size, strip=strip) == ()
        target = size.target(12, 15, 2)
        assert Image.open(tmp_path / name).size == (target.width, target.height)
        assert is_result(tmp_path / name)
        assert lines[-1].startswith(f"left out {number + 1} result")
    found = survey(upscaler, [task], UpscaleRequest(size=size))
    assert (found.todo, found.kept) == ((), (task,))
    every = plan_tasks(sorted(tmp_path.iterdir()), None, scale=2)  # a pattern of the shell
    assert [task.source.name for task in every] == ["a.png"]


def test_a_genuine_image_that_is_named_by_a_size_is_upscaled(tmp_path, upscaler):
    save(tmp_path / "beach.jpg")
    genuine = save(tmp_path / "beach_30x20.png", 20, 30)
    before = genuine.read_bytes()
    tasks = plan_tasks([tmp_path], None, scale=2, size=OutputSize(width=30, height=20))
    assert outputs(tasks, tmp_path) == ["beach_30x20_30x20.png", "beach_jpg_30x20.png"]
    assert do(upscaler, tasks, size=OutputSize(width=30, height=20)) == ()
    assert genuine.read_bytes() == before


def test_images_too_small_for_a_size_do_not_stop_the_others(tmp_path, upscaler):
    save(tmp_path / "large.png", 24, 30)
    save(tmp_path / "small.png")
    size = OutputSize(width=60, height=48)
    (failure,) = do(upscaler, plan_tasks([tmp_path], None, scale=2, size=size), size=size)
    where = f"{tmp_path / 'small.png'}: 60 x 48 pixels are more than x2 of its 15 x 12"
    assert failure.reason == f"{where}; --passes 2 runs the model twice, up to x4"
    size = OutputSize(width=60, height=48, passes=2)
    tasks = plan_tasks([tmp_path], None, scale=2, size=size)
    assert do(upscaler, tasks, size=size) == ()
    assert {Image.open(task.output).size for task in tasks} == {(60, 48)}


def test_pixels_of_geotiffs_scale_by_each_side(tmp_path, upscaler):
    tags = [(33550, "d", 3, (10.0, 20.0, 0.0), True), (33922, "d", 6, (0.0, 0.0, 0.0, 5.0, 6.0, 0.0), True)]
    tifffile.imwrite(tmp_path / "a.tif", photo(16, 24), photometric="rgb", extratags=tags)
    size = OutputSize(width=40, height=20)
    assert do(upscaler, [Task(tmp_path / "a.tif", tmp_path / "b.tif")], size=size) == ()
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        found = {tag.code: tag.value for tag in file.pages[0].tags}
    assert found[33550] == pytest.approx((10.0 * 24 / 40, 20.0 * 16 / 20, 0.0))
    assert found[33922][3:5] == (5.0, 6.0)


def test_an_interrupt_within_an_image_leaves_no_partial_file(tmp_path, upscaler):
    tasks = plan_tasks([save(tmp_path / "a.png", 70, 60)], tmp_path / "out", scale=2)

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(upscaler, survey(upscaler, tasks, UpscaleRequest()), UpscaleRequest(), on_tiles=stop)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_error_in_the_survey_stops_only_one_file(tmp_path, upscaler, monkeypatch):
    save(tmp_path / "a.png", 10, 11)
    save(tmp_path / "b.png", 20, 21)
    plan = Upscaler.plan

    def sometimes(self, height, width):
        if height == 10:
            raise ZeroDivisionError("by zero")
        return plan(self, height, width)

    monkeypatch.setattr(Upscaler, "plan", sometimes)
    found = survey(upscaler, plan_tasks([tmp_path], None, scale=2), UpscaleRequest())
    assert [task.source.name for task, _ in found.todo] == ["b.png"]
    assert "ZeroDivisionError" in found.failures[0].reason


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_names_that_are_not_utf8_are_read_and_written(tmp_path, upscaler, suffix):
    folder = tmp_path / "in"
    kind = {".jpg": "jpeg", ".tif": "tiff"}.get(suffix, suffix[1:])
    for name in ("bad\udcff", "sub\udcfe/worse\udcff"):  # bytes 0xff and 0xfe
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            Image.fromarray(photo(12, 15)).save(file, kind)
    assert do(upscaler, plan_tasks([tmp_path / "in"], None, scale=2)) == ()
    assert (folder / "bad\udcff_x2.png").exists()
    assert (folder / "sub\udcfe/worse\udcff_x2.png").exists()
    for written in ("tiff", "webp", "jpeg"):
        assert do(upscaler, plan_tasks([tmp_path / "in"], None, scale=2, file_format=written)) == ()


def test_overwrite_replaces_existing_results(tmp_path, upscaler):
    source = save(tmp_path / "a.png")
    tasks = plan_tasks([source], None, scale=2)
    tasks[0].output.write_bytes(b"old")
    assert do(upscaler, tasks) == ()
    assert tasks[0].output.read_bytes() == b"old"
    assert do(upscaler, tasks, overwrite=True) == ()
    assert Image.open(tasks[0].output).size == (30, 24)


def test_an_input_is_never_its_own_output(tmp_path, upscaler):
    source = save(tmp_path / "a.png")
    for overwrite in (True, False):
        (failure,) = do(upscaler, [Task(source, source)], overwrite=overwrite)
        assert "would replace its own input" in failure.reason
    other = save(tmp_path / "b.png")
    before = other.read_bytes()
    tasks = [Task(source, tmp_path / "x" / ".." / "b.png"), Task(other, tmp_path / "c.png")]
    (failure,) = do(upscaler, tasks, overwrite=True)
    assert "would replace another input" in failure.reason
    assert other.read_bytes() == before


def test_files_of_killed_runs_are_removed_and_those_of_running_ones_kept(tmp_path, upscaler):
    source = save(tmp_path / "a.png")
    dead, live = tmp_path / ".a_x2-abcd_123.png", tmp_path / ".a_x2-abcd_124.png"
    other = tmp_path / ".a_x2-something-else.png"
    for path in (dead, live, other):
        path.touch()
    for path in (dead, other):
        os.utime(path, (time.time() - 7200,) * 2)
    assert do(upscaler, plan_tasks([source], None, scale=2)) == ()
    assert not dead.exists()
    assert live.exists()
    assert other.exists()


def test_a_full_disk_is_reported_before_anything_is_computed(tmp_path, upscaler, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 100, 100))
    tasks = plan_tasks([save(tmp_path / "a.png")], tmp_path / "out", scale=2)
    with pytest.raises(InputError, match=r"the results need about 1\.08 kB and 100 bytes are free"):
        survey(upscaler, tasks, UpscaleRequest())
    assert not (tmp_path / "out").exists()


def test_a_disk_that_states_no_size_is_used(tmp_path, upscaler, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 0))
    source = save(tmp_path / "a.png")
    assert do(upscaler, plan_tasks([source], None, scale=2)) == ()


def test_the_room_for_a_size_is_that_of_the_result_and_of_the_first_pass(tmp_path, upscaler, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 1, 1))
    tasks = plan_tasks([save(tmp_path / "a.png", 20, 10), save(tmp_path / "b.png", 10, 10)], None, scale=2)
    for size, needed in [
        (OutputSize(width=10, height=20), "600 bytes"),  # two results, half their raw size
        (OutputSize(width=30, height=30, passes=2), "5.10 kB"),  # and one first pass of 20x40
    ]:
        with pytest.raises(InputError, match=f"the results need about {needed}"):
            survey(upscaler, tasks, UpscaleRequest(size=size))


def test_a_folder_that_is_not_writable_is_reported_before_anything_is_computed(
    tmp_path, upscaler, monkeypatch
):
    tasks = plan_tasks([save(tmp_path / "a.png")], None, scale=2)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    (failure,) = survey(upscaler, tasks, UpscaleRequest()).failures
    assert "is not writable; choose another folder with -o" in failure.reason
    tasks = plan_tasks([tmp_path / "a.png", save(tmp_path / "b.png")], None, scale=2)
    with pytest.raises(InputError, match="is not writable; choose another folder with -o"):
        survey(upscaler, tasks, UpscaleRequest())  # one line for all


def test_a_file_in_place_of_a_folder_is_refused(tmp_path, upscaler):
    (tmp_path / "out").touch()
    tasks = [Task(save(tmp_path / "a.png"), tmp_path / "out" / "a.png")]
    (failure,) = survey(upscaler, tasks, UpscaleRequest()).failures
    assert "is a file, not a folder" in failure.reason


def test_inputs_with_too_many_pixels_are_failures(tmp_path, upscaler):
    tasks = plan_tasks([save(tmp_path / "a.png")], None, scale=2)
    (failure,) = do(upscaler, tasks, max_pixels=100)
    assert "--max-pixels 180" in failure.reason


@pytest.mark.parametrize("size", [OutputSize(), OutputSize(factor=1.7), OutputSize(passes=2)])
def test_files_equal_what_the_upscaler_returns(tmp_path, upscaler, size):
    source = save(tmp_path / "a.png", 70, 81)
    for suffix in (".png", ".tif"):
        assert do(upscaler, [Task(source, tmp_path / f"b{suffix}")], size=size) == ()
        written = np.asarray(Image.open(tmp_path / f"b{suffix}"))
        np.testing.assert_array_equal(written, upscaler(photo(70, 81), size=size))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_height_of_an_image(tmp_path):
    """A result of 65536 x 65536 pixels, bicubic only. Takes minutes, and 5 GB of disk."""
    import subprocess
    import sys

    import pyvips

    model = tiny_model(tmp_path / "model", scale=4, bypass=500.0)
    tile = pyvips.Image.new_from_array(photo(1024, 1024))
    tile.replicate(16, 16).tiffsave(str(tmp_path / "in.tif"), compression="lzw")
    script = f"""
from pathlib import Path
from cabm.machine.memory import peak_memory
from cabm.upscaling.jobs import run_job, survey
from cabm.upscaling.request import UpscaleRequest
from cabm.upscaling.tasks import plan_tasks
from cabm.upscaling.upscaler import Upscaler
upscaler = Upscaler.load({str(model)!r})
tasks = plan_tasks([Path({str(tmp_path / "in.tif")!r})], Path({str(tmp_path / "out.tif")!r}), scale=4)
assert run_job(upscaler, survey(upscaler, tasks, UpscaleRequest()), UpscaleRequest()) == ()
print(peak_memory())
"""
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert int(printed.stdout) < 1.5e9
    written = pyvips.Image.new_from_file(str(tmp_path / "out.tif"))
    assert (written.width, written.height) == (65536, 65536)
