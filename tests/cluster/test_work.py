from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cabm.cluster.local_store import LocalStore
from cabm.cluster.ray_job import outcome_of_row, outcome_to_table
from cabm.cluster.work import (
    MAX_DEATHS,
    Attempts,
    Item,
    Outcome,
    Recipe,
    Worker,
    chunks,
    find_items,
    model_files,
)
from cabm.errors import InputError
from cabm.imaging.writer import OutputSpec, image_writer
from cabm.upscaling.request import UpscaleRequest
from cabm.upscaling.size import OutputSize
from cabm.upscaling.tasks import plan_tasks
from cabm.upscaling.upscaler import Upscaler
from tests.upscaling.helpers import photo, tiny_model


class Bucket(LocalStore):
    """A store whose files are copied to and from this machine, as an object store's are."""

    def address(self, name: str) -> str:
        return f"bucket://{name}"

    @contextmanager
    def local_copy(self, name, job):
        if not self.has(name):
            raise FileNotFoundError(2, "no such file")
        with super().new_file("copy.png", job) as path:
            path.write_bytes(self._path(name).read_bytes())
            yield path
        self._path("copy.png").unlink()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def recipe(tmp_path, model):
    def make(kind: type[LocalStore] = LocalStore, **how) -> Recipe:
        source, output = kind(str(tmp_path / "in")), kind(str(tmp_path / "out"))
        request = UpscaleRequest(engine="float", device="cpu", threads=1, **how)
        return Recipe(source, output, "job", model_files(model), request)

    return make


def save(path: Path, height: int = 12, width: int = 15) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(height, width)).save(path)
    return path


def save_result(path: Path) -> Path:
    """Save an image with the mark of a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with image_writer(path, OutputSpec(16, 16, 3)) as write:
        write(photo(16, 16))
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("output", ["out", "in", "in/out"])
def test_images_are_found_and_named_as_on_one_machine(tmp_path, output):
    names = ["a.png", "a.jpg", "b.png", "sub/b.JPG", "sub/deep/c ü.tiff", "sub/b_x2_x2.png", "b_x2.png"]
    for name in (*names, "notes.txt", ".hidden.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        side = 16 if name == "b_x2.png" else 8  # of the size of a result, but without the mark
        Image.new("RGB", (side, side)).save(path) if path.suffix != ".txt" else path.touch()
    source, target = tmp_path / "in", tmp_path / output
    found = [item for item, _ in find_items(LocalStore(str(source)), LocalStore(str(target)), scale=2)]
    planned = plan_tasks([source], target, scale=2)
    assert sorted((str(source / item.source), str(target / item.output)) for item in found) == sorted(
        (str(task.source), str(task.output)) for task in planned
    )
    assert len(found) == len(names)
    for task in planned:
        save_result(task.output)
    results = []
    stores = (LocalStore(str(source)), LocalStore(str(target)))
    again = find_items(*stores, scale=2, on_results=results.append)
    assert [(item, True) for item in found] == list(again)
    assert sum(results) == (len(planned) if output == "in" else 0)


def test_results_of_a_size_are_named_computed_and_kept_as_on_one_machine(tmp_path, model, recipe):
    save(tmp_path / "in/a.png", 20, 30)
    save(tmp_path / "in/b.png")
    size = OutputSize(width=50)
    cluster = recipe(size=size)
    stores = (cluster.source, cluster.output)
    found = [item for item, _ in find_items(*stores, scale=2, size=size)]
    assert [item.output for item in found] == ["a_w50.png", "b_w50.png"]
    done, refused = map(Worker(cluster), found)
    assert "50 x 40 pixels are more than x2 of its 15 x 12; --passes 2" in refused.reason
    assert files(tmp_path / "out") == ["a_w50.png"]
    one = Upscaler.load(model, engine="float", device="cpu")
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "out/a_w50.png")), one(photo(20, 30), size=size)
    )
    assert done.computed and [exists for _, exists in find_items(*stores, scale=2, size=size)] == [
        True,
        False,
    ]


def test_two_images_cannot_have_one_result(tmp_path):
    for name in ("a.png", "a.jpg", "a_png.png"):
        save(tmp_path / name)
    store = LocalStore(str(tmp_path))
    with pytest.raises(InputError, match=r"a_png_x2\.png: the results of two inputs get this name"):
        list(find_items(store, store, scale=2))


@pytest.mark.parametrize(("number", "workers", "alone"), [(0, 2, True), (12, 2, True), (100_000, 8, False)])
def test_few_images_go_one_by_one_and_many_together(number, workers, alone):
    items = [Item(str(index), "") for index in range(number)]
    made = list(chunks(iter(items), workers))
    assert [item for chunk in made for item in chunk] == items
    sizes = [len(chunk) for chunk in made]
    assert (max(sizes, default=1) == 1) == alone
    assert max(sizes, default=1) <= 64
    assert sizes[: 4 * workers] == [1] * min(number, 4 * workers)


def test_an_image_that_starts_again_unfinished_has_killed_a_worker():
    attempts = Attempts()
    assert attempts.start("a") == 0
    attempts.finish("a")
    assert [attempts.start("a"), attempts.start("b"), attempts.start("a")] == [0, 0, 1]
    assert attempts.start("a") == 2
    attempts.finish("a")
    assert attempts.start("a") == 0
    assert attempts.deaths() == {"a": 2}


@pytest.mark.parametrize("kind", [LocalStore, Bucket])
def test_a_worker_writes_what_one_machine_writes(tmp_path, model, recipe, kind):
    source = save(tmp_path / "in/sub/a.png", 70, 81)
    outcome = Worker(recipe(kind=kind))(Item("sub/a.png", "sub/a_x2.png"))
    assert outcome.computed
    assert outcome.reason == ""
    assert files(tmp_path / "out") == ["sub/a_x2.png"]
    written = np.asarray(Image.open(tmp_path / "out/sub/a_x2.png"))
    np.testing.assert_array_equal(
        written, Upscaler.load(model, engine="float", device="cpu")(photo(70, 81))
    )
    assert outcome.bytes_read == source.stat().st_size
    assert outcome.bytes_written == (tmp_path / "out/sub/a_x2.png").stat().st_size
    assert outcome.cpu_seconds > 0
    assert outcome.peak_bytes > 10e6


@pytest.mark.parametrize("kind", [LocalStore, Bucket])
def test_the_outcome_of_a_bad_image_gives_its_address(tmp_path, recipe, kind):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.png").write_bytes(b"no image")
    broken = save(tmp_path / "in/broken.png", 90, 80)
    broken.write_bytes(broken.read_bytes()[:9000])
    upscale = Worker(recipe(kind=kind))
    for name, problem in [("bad", "not an image"), ("broken", "corrupt"), ("none", "no such file")]:
        outcome = upscale(Item(f"{name}.png", f"{name}_x2.png"))
        assert recipe(kind=kind).source.address(f"{name}.png") in outcome.reason
        assert problem in outcome.reason
        assert ".cabm-" not in outcome.reason
        assert "\n" not in outcome.reason
        assert not outcome.computed
    assert [name for name in files(tmp_path) if not name.startswith("in/")] == []


def test_an_unexpected_error_is_an_outcome_with_its_traceback(tmp_path, recipe, monkeypatch):
    save(tmp_path / "in/a.png")

    def faulty(*_, **__):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(Upscaler, "start_file", faulty)
    outcome = Worker(recipe())(Item("a.png", "a_x2.png"))
    assert outcome.reason == f"{tmp_path / 'in/a.png'}: ZeroDivisionError: by zero"
    assert "in faulty" in outcome.traceback


def test_existing_results_are_kept_unless_overwrite_is_set(tmp_path, recipe):
    save(tmp_path / "in/a.png")
    (tmp_path / "out").mkdir()
    result = tmp_path / "out/a_x2.png"
    result.write_bytes(b"old")
    outcome = Worker(recipe())(Item("a.png", "a_x2.png"))
    assert (outcome.reason, outcome.computed) == ("", False)
    assert result.read_bytes() == b"old"
    assert Worker(recipe(overwrite=True))(Item("a.png", "a_x2.png")).computed
    assert Image.open(result).size == (30, 24)


def test_an_image_that_kills_its_workers_is_given_up(tmp_path, recipe):
    save(tmp_path / "in/a.png")
    upscale, item = Worker(recipe()), Item("a.png", "a_x2.png")
    outcome = upscale(item, deaths=MAX_DEATHS)
    assert outcome.reason.startswith(f"{tmp_path / 'in/a.png'}: {MAX_DEATHS} workers died on this image")
    assert not (tmp_path / "out").exists()
    assert upscale(item, deaths=MAX_DEATHS - 1).computed


def test_a_worker_that_cannot_run_the_model_says_why(recipe):
    with pytest.raises(InputError, match="tiles of 2 pixels"):
        Worker(recipe(tile=2))


def test_hidden_folders_and_unsupported_images_are_left_out(tmp_path):
    for name in ("a.png", ".git/b.png", "@eaDir/c.png", "sub/d.psd"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    unsupported: list[str] = []
    stores = LocalStore(str(tmp_path)), LocalStore(str(tmp_path / "out"))
    found = [item.source for item, _ in find_items(*stores, scale=2, on_unsupported=unsupported.extend)]
    assert found == ["a.png"]
    assert unsupported == ["d.psd"]


def test_a_worker_upscales_every_page(tmp_path, recipe):
    pages = [Image.fromarray(photo(12, 15, seed=seed)) for seed in range(2)]
    (tmp_path / "in").mkdir()
    pages[0].save(tmp_path / "in/a.tif", save_all=True, append_images=pages[1:])
    assert Worker(recipe(all_frames=True))(Item("a.tif", "a_x2.tif")).computed
    assert Image.open(tmp_path / "out/a_x2.tif").n_frames == 2
    assert files(tmp_path / "out") == ["a_x2.tif"]


def test_an_outcome_travels_whole() -> None:
    sent = Outcome("a.png", "failed", "Traceback", ("a note",), True, True, 1.5, 2, 3, 4)
    (row,) = outcome_to_table(sent).to_pylist()
    assert outcome_of_row(row) == sent
    (row,) = outcome_to_table(Outcome("caf\udce9.png")).to_pylist()
    assert outcome_of_row(row) == Outcome("caf\\udce9.png"), "a name that is not UTF-8"
