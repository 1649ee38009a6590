"""The work of a cluster job: which images it upscales, and what a worker does with each.

This module does not know how work reaches the workers; `cabm.cluster.ray_job` does.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from cabm.checkpoints.model_files import CONFIG_FILE, TABLE_FILE, WEIGHTS_FILE
from cabm.cluster.stores import Store
from cabm.errors import InputError
from cabm.imaging.formats import is_image
from cabm.imaging.mark import is_marked, is_result
from cabm.imaging.search import is_left_out, is_unsupported
from cabm.machine.memory import peak_memory
from cabm.upscaling.jobs import Failure, run_task
from cabm.upscaling.request import UpscaleRequest
from cabm.upscaling.size import AS_COMPUTED, OutputSize
from cabm.upscaling.tasks import Task, result_name

MAX_DEATHS = 3
"""Workers that may die on one image before it is given up: an image too large for memory kills them all."""

_READERS = 32  # requests at a time: each takes tens of milliseconds in an object store
_MAX_CHUNK = 64
_CHUNKS_PER_WORKER = 32


@dataclass(frozen=True)
class Item:
    """An image and its result, by their names in the two stores."""

    source: str
    output: str


@dataclass(frozen=True)
class Recipe:
    """What a worker needs besides its items.

    Attributes:
        source, output: stores of the images and of the results.
        job: unique name of this job, for its scratch folders.
        model: contents of the files of a model directory, by name.
        request: how to upscale.
    """

    source: Store
    output: Store
    job: str
    model: dict[str, bytes] = field(repr=False)
    request: UpscaleRequest


@dataclass(frozen=True)
class Outcome:
    """What happened to an item.

    Attributes:
        source: address of the image, for messages.
        reason: why it failed, in one line; empty if it did not.
        traceback: of an unexpected error, otherwise empty.
        notes: conversions of the pixels that the user should know of.
        computed: whether this worker upscaled the image; False if the result existed.
        left_out: whether the image is the result of an earlier job.
        cpu_seconds: processor time, summed over threads.
        bytes_read, bytes_written: file sizes of the image and of its result.
        peak_bytes: the most memory that this worker has used so far.
    """

    source: str
    reason: str = ""
    traceback: str = ""
    notes: tuple[str, ...] = ()
    computed: bool = False
    left_out: bool = False
    cpu_seconds: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    peak_bytes: int = 0


def model_files(directory: Path) -> dict[str, bytes]:
    """Read the files of a model directory, to send them to workers on other machines."""
    names = (CONFIG_FILE, WEIGHTS_FILE, TABLE_FILE)
    return {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}


def find_items(
    source: Store,
    output: Store,
    *,
    scale: int,
    size: OutputSize = AS_COMPUTED,
    file_format: str | None = None,
    on_unsupported: Callable[[list[str]], object] = lambda names: None,
    on_results: Callable[[int], object] = lambda number: None,
) -> Iterator[tuple[Item, bool]]:
    """Yield every image in a store, and whether its result exists, folder by folder.

    Results get the names that `cabm.upscaling.tasks.plan_tasks` gives. Only the names of one folder are in
    memory at a time.

    Args:
        source: store of the images.
        output: store of the results; if it is inside ``source``, it is not searched.
        scale, size, file_format: see `cabm.upscaling.tasks.plan_tasks`.
        on_unsupported: called with the names of images in a folder that are not supported.
        on_results: called with the number of results of earlier jobs beside the images of a folder.

    Raises:
        InputError: the results of two images would get one name.
        OSError: a folder cannot be listed.
    """
    skipped, ending = output.within(source), size.name(scale)
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        found = source.entries(folder)
        inside = sorted(_join(folder, name) for name in found.folders)
        waiting += [
            name
            for name in reversed(inside)
            if name != skipped and not is_left_out(PurePosixPath(name).name)
        ]
        images = sorted(path for path in map(Path, found.files) if is_image(path))
        if skipped == "":
            originals = _without_results(images, source, folder, ending, file_format)
            on_results(len(images) - len(originals))
            images = originals
        on_unsupported([name for name in found.files if is_unsupported(name)])
        if not images:
            continue
        stems = Counter(path.stem for path in images)
        existing = frozenset(output.entries(folder).files)
        inputs = {path.name for path in images} if skipped == "" else set()
        taken: set[str] = set()
        for path in images:
            name = result_name(path, ending, file_format, alone=stems[path.stem] == 1)
            if name in inputs:  # a photograph that only looks like a result
                name = result_name(path, ending, file_format, alone=False)
            if name in taken:
                where = output.address(_join(folder, name))
                raise InputError(f"{where}: the results of two inputs get this name; rename one of them")
            taken.add(name)
            yield Item(_join(folder, path.name), _join(folder, name)), name in existing


def _without_results(
    images: list[Path], source: Store, folder: str, ending: str, file_format: str | None
) -> list[Path]:
    """Leave out the results beside their originals: files that have the name of a result, and the mark.

    Workers find all other results, when they read them.
    """
    names = {
        result_name(path, ending, file_format, alone=alone) for path in images for alone in (True, False)
    }
    suspects = [path.name for path in images if path.name in names]

    def marked(name: str) -> bool:
        with source.opened(_join(folder, name)) as file:
            return is_marked(file)

    with ThreadPoolExecutor(_READERS) as pool:
        results = {name for name, found in zip(suspects, pool.map(marked, suspects), strict=True) if found}
    return [path for path in images if path.name not in results]


def chunks(items: Iterable[Item], num_workers: int) -> Iterator[list[Item]]:
    """Group items into what a worker takes at a time: one while there are few, up to 64 in a large job.

    All workers get work early this way. A dead worker's whole chunk is repeated, so chunks stay small.
    """
    chunk: list[Item] = []
    number = 0
    for number, item in enumerate(items, 1):
        chunk.append(item)
        if len(chunk) >= min(_MAX_CHUNK, 1 + number // (_CHUNKS_PER_WORKER * num_workers)):
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class Attempts:
    """Remembers which images are being upscaled. If work on one starts again, the first worker has died."""

    def __init__(self) -> None:
        self._started: dict[str, int] = {}
        self._deaths: dict[str, int] = {}

    def start(self, source: str) -> int:
        """Note that work on an image starts; return how many workers died on it."""
        before = self._started.get(source, 0)
        self._started[source] = before + 1
        if before:
            self._deaths[source] = before
        return before

    def finish(self, source: str) -> None:
        """Note that work on an image has ended, with or without success."""
        self._started.pop(source, None)

    def deaths(self) -> dict[str, int]:
        """Return the images that workers died on, each with their number."""
        return dict(self._deaths)


class Worker:
    """Holds one model and upscales one image after another.

    Raises:
        InputError: this machine cannot run the model as requested.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        with tempfile.TemporaryDirectory(prefix="cabm-model-") as folder:
            for name, content in recipe.model.items():
                (Path(folder) / name).write_bytes(content)
            self._upscaler = replace(recipe.request, model=folder).load()

    def __call__(self, item: Item, deaths: int = 0) -> Outcome:
        """Upscale an image. An error is part of the outcome.

        Args:
            item: the image.
            deaths: number of workers that died on it.
        """
        recipe = self._recipe
        address = recipe.source.address(item.source)
        if deaths >= MAX_DEATHS:
            reason = f"{deaths} workers died on this image, perhaps of lack of memory; upscale it alone"
            return Outcome(address, f"{address}: {reason}")
        before = _cpu_seconds()
        try:
            if not recipe.request.overwrite and recipe.output.has(item.output):
                return Outcome(address)
            with (
                recipe.source.local_copy(item.source, recipe.job) as source,
                recipe.output.new_file(item.output, recipe.job) as output,
            ):
                if is_result(source):
                    raise _ResultFound  # in the folder of another job
                result = run_task(self._upscaler, Task(source, output), recipe.request)
                if isinstance(result, Failure):
                    raise _TaskFailed  # out of the blocks, so that they publish nothing
                sizes = source.stat().st_size, output.stat().st_size
        except _ResultFound:
            return Outcome(address, left_out=True)
        except _TaskFailed:
            addresses = {source: address, output: recipe.output.address(item.output)}
            return Outcome(address, _with_addresses(result.reason, addresses), result.traceback)
        except Exception as error:  # one bad image must not stop the others
            failure = Failure.of(error, address)
            return Outcome(address, failure.reason, failure.traceback)
        return Outcome(
            address,
            notes=result.notes,
            computed=True,
            cpu_seconds=_cpu_seconds() - before,
            bytes_read=sizes[0],
            bytes_written=sizes[1],
            peak_bytes=peak_memory(),
        )


class _ResultFound(Exception):
    """An image is the result of another job."""


class _TaskFailed(Exception):
    """An image could not be upscaled."""


def _with_addresses(reason: str, addresses: dict[Path, str]) -> str:
    """Name files by their addresses instead of the paths of local copies."""
    for path, address in addresses.items():
        reason = reason.replace(str(path), address)
    return reason


def _join(folder: str, name: str) -> str:
    return str(PurePosixPath(folder, name)) if folder else name


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system
