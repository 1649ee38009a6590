"""Whole jobs on Ray clusters with two workers on this machine, for a folder and an S3 server.

pytest -m slow tests/cluster/test_ray_job.py, after pip install -e ".[test-servers]".
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from PIL import Image

from tests.sharing.remotes import s3_remote
from tests.upscaling.helpers import photo, tiny_model

pytest.importorskip("ray.data", reason="pip install -e '.[ray]'")
psutil = pytest.importorskip("psutil")

pytestmark = pytest.mark.slow

NUM_IMAGES = 12
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@dataclass
class Place:
    """A folder or a bucket.

    Attributes:
        url: its name for the command.
        environment: variables for the command.
        content: reads all files, by name.
        put: writes a file.
        remove: removes a file.
    """

    url: str
    content: Callable[[], dict[str, bytes]]
    put: Callable[[str, bytes], None]
    remove: Callable[[str], None]
    environment: Mapping[str, str] = field(default_factory=dict)


def folder_place(folder: Path) -> Place:
    def content() -> dict[str, bytes]:
        found = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}

    def put(name: str, data: bytes) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return Place(str(folder), content, put, lambda name: (folder / name).unlink())


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[Callable[[str], Place]]:
    import boto3

    remote = s3_remote(tmp_path_factory.mktemp("s3"), os.environ)
    endpoint = remote.settings["endpointurl"]
    environment = {**remote.environment, "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1"}
    keys = {name.lower(): value for name, value in remote.environment.items()}
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)

    def place(prefix: str) -> Place:
        def content() -> dict[str, bytes]:
            listed = client.list_objects_v2(Bucket="store", Prefix=f"{prefix}/").get("Contents", [])
            names = [entry["Key"] for entry in listed]
            read = {name: client.get_object(Bucket="store", Key=name)["Body"].read() for name in names}
            return {name.removeprefix(f"{prefix}/"): data for name, data in read.items()}

        return Place(
            f"s3://store/{prefix}",
            content,
            lambda name, data: (
                client.put_object(Bucket="store", Key=f"{prefix}/{name}", Body=data) and None
            ),
            lambda name: client.delete_object(Bucket="store", Key=f"{prefix}/{name}") and None,
            environment,
        )

    yield place
    remote.stop()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Twelve files in two folders, one of which is not an image."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "ünter").mkdir()
    for index in range(NUM_IMAGES - 1):
        name = f"{'ünter/' if index % 3 == 0 else ''}{index:02}.png"
        Image.fromarray(photo(600, 800, seed=index)).save(folder / name)
    (folder / "bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def expected(photos, model, tmp_path_factory) -> dict[str, bytes]:
    """The results of `cabm upscale`."""
    out = tmp_path_factory.mktemp("expected")
    command = [
        sys.executable,
        "-m",
        "cabm",
        "upscale",
        str(photos),
        "-o",
        str(out),
        "-m",
        str(model),
    ]
    subprocess.run([*command, "--engine", "float", "--threads", "1"], capture_output=True, check=False)
    content = folder_place(out).content()
    assert len(content) == NUM_IMAGES - 1
    return content


class Run:
    """`cabm cluster upscale` with two workers, in a process of its own.

    Attributes:
        scratch: where it puts its temporary files.
        listeners: addresses that it listened on, when workers were killed.
        niceness: of the workers that were killed.
    """

    def __init__(self, source: Place, target: Place, model: Path, scratch: Path, *options: str) -> None:
        command = [sys.executable, "-m", "cabm", "cluster", "upscale", source.url, "-o", target.url]
        command += ["--workers", "2", "-m", str(model), "--engine", "float", *options]
        scratch.mkdir(exist_ok=True)
        self.scratch = scratch
        # Ray's sockets need short paths
        places = {"TMPDIR": str(scratch), "RAY_TMPDIR": "/tmp", "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **source.environment, **target.environment, **places}
        environment.pop("RAY_ADDRESS", None)
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.listeners: set[str] = set()
        self.niceness: set[int] = set()

    def family(self) -> list:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def kill_worker(self, is_in_hand: Callable[[Path], bool]) -> bool:
        """Kill a worker that has a matching file open; return whether there was one."""
        for process in self.family():
            try:
                if not process.name().startswith("ray::MapWorker") or process.status() == "zombie":
                    continue
                process.suspend()  # it will die with the files that it has open now
                if any(is_in_hand(Path(file.path)) for file in process.open_files()):
                    self.niceness.add(process.nice())
                    self._look_at_sockets()
                    process.kill()
                    return True
                process.resume()
            except psutil.NoSuchProcess:
                continue
        return False

    def kill_workers(self, is_in_hand: Callable[[Path], bool], times: int) -> int:
        """Kill that many workers with a matching file open; return how many were killed."""
        killed = 0
        deadline = time.monotonic() + 500
        while killed < times and self.process.poll() is None and time.monotonic() < deadline:
            killed += self.kill_worker(is_in_hand)
            time.sleep(0.02)
        return killed

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=500)
        return self.process.returncode, out, err

    def _look_at_sockets(self) -> None:
        for process in self.family():
            try:
                connections = process.net_connections(kind="inet")
            except psutil.NoSuchProcess:
                continue
            self.listeners |= {made.laddr.ip for made in connections if made.status == "LISTEN"}


def is_half_written(path: Path) -> bool:
    """Return whether a file is a result in progress."""
    return ".cabm-" in str(path) and path.name.startswith(".") and path.suffix == ".png"


@pytest.fixture(params=["folder", "bucket"])
def places(request, tmp_path, photos) -> tuple[Place, Place]:
    if request.param == "folder":
        return folder_place(photos), folder_place(tmp_path / "out")
    place = request.getfixturevalue("bucket")
    source = place("in ü")
    for name, data in folder_place(photos).content().items():
        source.put(name, data)
    return source, place(tmp_path.name)  # the bucket is shared by all tests


def test_a_job_survives_a_killed_worker_and_a_second_run_completes_it(places, expected, model, tmp_path):
    source, target = places
    run = Run(source, target, model, tmp_path / "scratch")
    assert run.kill_workers(is_half_written, 1) == 1
    code, out, err = run.finish()

    assert code == 1, err
    assert out == f"wrote {NUM_IMAGES - 1} images\n"
    died, bad, count = err.splitlines()
    assert died.startswith(f"cabm: a worker died on {source.url}/")
    assert bad.startswith(f"cabm: {source.url}/bad.png: not an image")
    assert count == f"cabm: 1 of {NUM_IMAGES} images failed"
    assert target.content() == expected
    assert not list((tmp_path / "scratch").rglob("*.png"))
    assert run.listeners
    assert run.listeners <= set(LOOPBACK)
    assert run.niceness == {os.nice(0)}, "as this process, and so as the command"

    first = next(iter(expected))
    target.remove(first)
    others = dict.fromkeys(expected.keys() - {first}, b"not looked into")
    for name, data in others.items():
        target.put(name, data)
    code, out, err = Run(source, target, model, tmp_path / "scratch").finish()
    assert out == f"wrote 1 image; kept {NUM_IMAGES - 2} that exist (--overwrite replaces them)\n", err
    assert target.content() == {**others, first: expected[first]}


def test_jobs_on_the_results_of_others_do_what_one_machine_does(bucket, photos, model, tmp_path):
    """Results go beside the images: first, again with another option, and to another size."""
    place, folder = bucket(tmp_path.name), tmp_path / "in"
    folder.mkdir()
    for name in ("01.png", "02.png"):
        shutil.copy(photos / name, folder)
        place.put(name, (photos / name).read_bytes())
    left_out = "left out 2 results of earlier runs, by the mark in the metadata"
    jobs = [
        ((), "wrote 2 images"),
        (("--alpha", "bicubic"), f"kept 2 that exist (--overwrite replaces them); {left_out}"),
        (("--width", "900"), f"wrote 2 images; {left_out}"),
    ]
    for options, summary in jobs:
        one = [sys.executable, "-m", "cabm", "upscale", folder, "-m", model, "--engine", "float", *options]
        single = subprocess.run([*map(str, one)], capture_output=True, text=True, check=True)
        code, out, err = Run(place, place, model, tmp_path / "scratch", *options).finish()
        assert (code, out) == (0, f"{summary}\n"), err
        told = [line.removeprefix("cabm: ") for line in single.stderr.splitlines() if "left out" in line]
        assert "; ".join([single.stdout.strip(), *told]) == summary
        assert place.content() == folder_place(folder).content()


def test_an_image_that_kills_every_worker_fails_alone(photos, model, expected, tmp_path):
    source, target = folder_place(tmp_path / "in"), folder_place(tmp_path / "out")
    for name in ("01.png", "02.png"):
        source.put(name, (photos / name).read_bytes())
    Image.fromarray(photo(1200, 1201)).save(tmp_path / "in" / "poison.png")
    run = Run(source, target, model, tmp_path / "scratch")
    assert run.kill_workers(lambda path: is_half_written(path) and "poison" in path.name, 3) == 3
    code, out, err = run.finish()
    assert code == 1
    assert out == "wrote 2 images\n"
    assert f"cabm: 3 workers died on {source.url}/poison.png\n" in err
    assert f"cabm: {source.url}/poison.png: 3 workers died on this image" in err
    assert target.content() == {name: expected[name] for name in ("01_x2.png", "02_x2.png")}


@pytest.mark.skipif(os.name == "nt", reason="no signals")
def test_an_interrupted_job_leaves_no_partial_file_and_no_process(places, model, tmp_path):
    source, target = places
    run = Run(source, target, model, tmp_path / "scratch")
    deadline = time.monotonic() + 500
    while not target.content() and time.monotonic() < deadline:
        time.sleep(0.2)
    workers = run.family()[1:]
    run.process.send_signal(signal.SIGTERM)
    code, _, err = run.finish()
    assert code == 130
    assert err.splitlines()[-1] == "cabm: interrupted; run the same command to resume"
    psutil.wait_procs(workers, timeout=60)
    assert not [process for process in workers if process.is_running()]
    assert all(name.endswith("_x2.png") and ".cabm-" not in name for name in target.content())
    assert not list((tmp_path / "scratch").rglob("*.png"))


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        (
            "s3://nowhere/in",
            "s3://store/out",
            (),
            "s3://nowhere/in: nothing has this name",
        ),
        ("s3://store/in", "s3://nowhere/out", (), "s3://nowhere/out: no such bucket"),
        ("s3://store/in", "s3://store/out", ("--address", "127.0.0.1:9"), "Ray at 127.0.0.1:9 cannot"),
    ],
)
def test_a_place_that_does_not_answer_is_one_line(
    bucket, model, tmp_path, source, target, options, message
):
    bucket("in").put("a.png", b"")
    asked = replace(bucket("in"), url=source), replace(bucket("out"), url=target)
    code, out, err = Run(*asked, model, tmp_path / "scratch", *options).finish()
    assert (code, out) == (1, "")
    assert err.startswith(f"cabm: {message}")
    assert len(err.splitlines()) == 1
