"""The last rows of an image are encoded while the network runs on the next image."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from PIL import Image

from cabm.imaging import writer
from cabm.upscaling.jobs import Failure, run_job, survey
from cabm.upscaling.request import UpscaleRequest
from cabm.upscaling.tasks import plan_tasks
from cabm.upscaling.upscaler import Upscaler
from tests.upscaling.helpers import photo, tiny_model

NAMES = ("a", "b", "c")
PATIENCE = 300.0


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Upscaler:
    return Upscaler.load(tiny_model(tmp_path_factory.mktemp("model") / "m"), engine="float", device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, name in enumerate(NAMES):
        Image.fromarray(photo(40, 50 + index)).save(tmp_path / f"{name}.png")
    return tmp_path


class Gate:
    """Holds back the encoder of the first image until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.was_opened_in_time = True
        save = writer._save

        def held_back(path: Path, spec, rows) -> None:
            if path.name.startswith(".a_"):
                self.was_opened_in_time = self.opened.wait(PATIENCE)
            save(path, spec, rows)

        monkeypatch.setattr(writer, "_save", held_back)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def do(upscaler: Upscaler, folder: Path, **callbacks: object) -> tuple[Failure, ...]:
    tasks = plan_tasks([folder], folder / "out", scale=2)
    return run_job(upscaler, survey(upscaler, tasks, UpscaleRequest()), UpscaleRequest(), **callbacks)


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out").iterdir())


def test_tiles_of_the_next_image_do_not_wait_for_the_encoder(folder, upscaler, gate):
    at, done, in_flight = [0], [], []

    def on_file(number, task):
        at[0] = number

    def on_tiles(count):
        if at[0] == 1 and not gate.opened.is_set():
            assert done == []
            gate.opened.set()
        in_flight.append(sum(thread.name == "encode" for thread in threading.enumerate()))

    def on_done(task, report):
        assert task.output.exists()
        done.append(task.source.stem)

    assert do(upscaler, folder, on_file=on_file, on_tiles=on_tiles, on_done=on_done) == ()
    assert gate.was_opened_in_time
    assert done == list(NAMES)
    assert max(in_flight) == 2
    assert written(folder) == [f"{name}_x2.png" for name in NAMES]


def test_a_file_is_finished_as_soon_as_it_is_encoded(folder, upscaler):
    at, seen = [0], []

    def on_file(number, task):
        at[0] = number

    def on_tiles(count):
        encoders = [thread for thread in threading.enumerate() if thread.name == "encode"]
        if at[0] == 1 and not seen:
            for encoder in encoders[:-1]:  # of the first image, unless it is done; the last is the second's
                encoder.join(PATIENCE)
            seen.append(written(folder))

    def on_done(task, report):
        if task.source.stem == "a":
            assert at == [1]  # not after the second image

    assert do(upscaler, folder, on_file=on_file, on_tiles=on_tiles, on_done=on_done) == ()
    assert "a_x2.png" not in seen[0]


def test_a_failure_to_write_is_that_of_its_file(folder, upscaler, monkeypatch):
    with_metadata = writer._with_metadata

    def failing(image, spec):
        if spec.width == 2 * 50:
            raise OSError("no space left")
        return with_metadata(image, spec)

    monkeypatch.setattr(writer, "_with_metadata", failing)
    done = []
    failures = do(upscaler, folder, on_done=lambda task, report: done.append(task.source.stem))
    assert [(failure.source.stem, "no space left" in failure.reason) for failure in failures] == [
        ("a", True)
    ]
    assert done == ["b", "c"]
    assert written(folder) == ["b_x2.png", "c_x2.png"]


def test_an_interrupt_keeps_the_image_that_is_all_computed(folder, upscaler, gate):
    at, done = [0], []

    def on_file(number, task):
        at[0] = number

    def stop(count):
        if at[0] == 1:
            threading.Timer(0.2, gate.opened.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do(
            upscaler,
            folder,
            on_file=on_file,
            on_tiles=stop,
            on_done=lambda task, report: done.append(task.source.stem),
        )
    assert done == ["a"]
    assert written(folder) == ["a_x2.png"]
    assert Image.open(folder / "out" / "a_x2.png").size == (100, 80)


def test_a_second_interrupt_leaves_no_partial_file(folder, upscaler, gate, monkeypatch):
    at = [0]

    def on_file(number, task):
        at[0] = number

    def stop(count):
        if at[0] == 1:
            raise KeyboardInterrupt

    def interrupted(stream) -> None:
        gate.opened.set()
        raise KeyboardInterrupt

    monkeypatch.setattr("cabm.imaging.png_stream.PngStream.wait_for_reader", interrupted)
    with pytest.raises(KeyboardInterrupt):
        do(upscaler, folder, on_file=on_file, on_tiles=stop)
    assert written(folder) == []


def test_an_error_of_a_callback_is_no_failure_of_an_image(folder, upscaler):
    def on_done(task, report):
        raise BrokenPipeError("nobody reads the report")

    with pytest.raises(BrokenPipeError):
        do(upscaler, folder, on_done=on_done)
    assert "a_x2.png" in written(folder)
