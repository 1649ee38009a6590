from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from PIL import Image

from cabm.upscaling.request import UpscaleRequest
from cabm.upscaling.tasks import Task
from cabm.upscaling.upscaler import Upscaler
from cabm.web.jobs import Job, Phase
from tests.upscaling.helpers import photo
from tests.web.conftest import save_photo


def job_of(model, source, output, show=lambda upscaled: upscaled, **options):
    request = UpscaleRequest(model=model, overwrite=True, **options)
    return Job(Task(source, output), request, request.load, show)


def watched(job):
    """Run a job and return the states it went through."""
    states = [job.start().wait(0)]
    while not job.ended:
        states.append(job.wait(0.001))
    return [*states, job.wait()]


def test_a_job_writes_what_the_upscaler_writes(model, picture, tmp_path):
    job = job_of(model, picture, tmp_path / "out.png")
    end = watched(job)[-1]
    assert (end.phase, end.error, end.done) == (Phase.DONE, "", end.total)
    expected = Upscaler.load(model)(Image.open(picture))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), expected)
    assert len(job.result.report.plan) == end.total


def test_progress_counts_tiles_and_estimates_the_time_left(model, tmp_path):
    source = save_photo(tmp_path / "large.jpg", photo(400, 400))
    states = watched(job_of(model, source, tmp_path / "out.png", threads=2))
    counts = [state.done for state in states]
    assert counts == sorted(counts)
    left = [state.seconds_left for state in states if state.seconds_left is not None]
    assert left, "no estimate"
    assert all(0 <= seconds < 600 for seconds in left)
    assert states[-1].seconds_left is None


@pytest.mark.parametrize("engine", ["auto", "float"])
def test_cancelling_stops_the_computing(model, tmp_path, engine):
    source = save_photo(tmp_path / "large.jpg", photo(1000, 1000))
    threads = threading.active_count()
    job = job_of(model, source, tmp_path / "out.png", engine=engine, threads=2).start()
    while job.wait(0.001).done < 3:
        assert not job.ended
    job.cancel()
    end = job.wait(60)
    assert job.ended and end.phase is Phase.CANCELLED
    assert 3 <= end.done < end.total / 2
    assert job.result is None
    assert [path.name for path in tmp_path.iterdir()] == ["large.jpg"]
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_a_job_that_is_cancelled_while_pictures_are_drawn_leaves_nothing(model, picture, tmp_path):
    job = job_of(model, picture, tmp_path / "out.png", show=lambda upscaled: job.cancel())
    assert job.start().wait().phase is Phase.CANCELLED
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "bad.jpg: the file is empty"),
        (b"no image at all", "bad.jpg: not an image that can be read"),
        ("truncated", "bad.jpg: the image is corrupt or truncated"),
    ],
)
def test_a_bad_file_fails_with_one_line_that_does_not_show_where_it_is(
    model, picture, tmp_path, content, words
):
    source = tmp_path / "bad.jpg"
    source.write_bytes(picture.read_bytes()[:3000] if content == "truncated" else content)
    end = job_of(model, source, tmp_path / "out.png").start().wait()
    assert end.phase is Phase.FAILED
    assert words in end.error
    assert len(end.error.splitlines()) == 1 and str(tmp_path) not in end.error
    assert not (tmp_path / "out.png").exists()


def test_an_unexpected_error_is_one_line_and_its_traceback_is_on_stderr(model, picture, tmp_path, capsys):
    def show(upscaled):
        raise RuntimeError("no <screen>\nhere")

    end = job_of(model, picture, tmp_path / "out.png", show=show).start().wait()
    assert end.phase is Phase.FAILED
    assert end.error == "RuntimeError: no <screen> here"
    assert "Traceback" in capsys.readouterr().err


def test_a_job_whose_model_cannot_run_fails(model, picture, tmp_path):
    end = job_of(tmp_path / "none", picture, tmp_path / "out.png").start().wait()
    assert end.phase is Phase.FAILED and "no such model directory" in end.error
