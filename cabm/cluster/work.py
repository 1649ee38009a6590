"""Upscale more images than one machine can: which ones, and what a worker does with each.

Nothing here knows how work reaches the workers; `cabm.cluster.ray_job` does.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cabm.checkpoints.model_directory import CONFIG_FILE, TABLE_FILE, WEIGHTS_FILE
from cabm.cluster.stores import Store
from cabm.errors import InputError
from cabm.imaging.formats import is_image
from cabm.machine.memory import peak_memory
from cabm.upscaling.jobs import Options, Task, reason_of, result_name, run_task, without_results
from cabm.upscaling.upscaler import DEFAULT_OVERLAP, Report, Upscaler

MAX_DEATHS = 3
"""Workers that may die at one image before it is given up: an image that no memory holds kills them all."""

_MAX_CHUNK = 64
_CHUNKS_PER_WORKER = 32


@dataclass(frozen=True)
class Item:
    """An image, and what becomes of it, by their names in the two stores."""

    source: str
    output: str


@dataclass(frozen=True)
class Recipe:
    """How images are upscaled; what a worker needs beside its items.

    Attributes:
        source, output: where images are and results go.
        job: a name of its own for what this job writes aside.
        model: content of the files of a model directory, by name.
        engine, device, threads, overlap, tile: see `Upscaler.load`.
        options: see `cabm.upscaling.jobs.Options`.
    """

    source: Store
    output: Store
    job: str
    model: dict[str, bytes] = field(repr=False)
    engine: str = "auto"
    device: str = "cpu"
    threads: int = 1
    overlap: str | int = DEFAULT_OVERLAP
    tile: int | None = None
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Attributes:
        source: its address, for people.
        reason: why it failed, in one line; empty if it did not.
        notes: what was done to the pixels that the user should know.
        computed: whether this worker upscaled it; else the result was there.
        cpu_seconds: processor time, of all threads.
        bytes_read, bytes_written: size of the image and its result.
        peak_bytes: the most memory that this worker has had.
    """

    source: str
    reason: str = ""
    notes: tuple[str, ...] = ()
    computed: bool = False
    cpu_seconds: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    peak_bytes: int = 0


def model_files(directory: Path) -> dict[str, bytes]:
    """Read the files of a model directory, to send them to workers that do not see it."""
    names = (CONFIG_FILE, WEIGHTS_FILE, TABLE_FILE)
    return {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}


def find_items(
    source: Store, output: Store, *, scale: int, file_format: str | None = None
) -> Iterator[tuple[Item, bool]]:
    """Yield every image below a place, and whether its result exists, folder by folder.

    Names are as `cabm.upscaling.jobs.plan_tasks` gives them. One folder's names are in memory at a time.

    Args:
        source: where the images are.
        output: where results go; if that is below ``source``, it is not searched.
        scale, file_format: see `cabm.upscaling.jobs.plan_tasks`.

    Raises:
        InputError: two images would have one result.
        OSError: a folder cannot be listed.
    """
    skipped = output.within(source)
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        found = source.entries(folder)
        inside = sorted(_join(folder, name) for name in found.folders)
        waiting += [name for name in reversed(inside) if not skipped or name != skipped]
        images = [path for path in map(Path, found.files) if is_image(path)]
        images = without_results(images, scale)
        if not images:
            continue
        stems = Counter(path.stem for path in images)
        existing = frozenset(output.entries(folder).files)
        taken: set[str] = set()
        for path in images:
            name = result_name(path, scale, file_format, alone=stems[path.stem] == 1)
            if name in taken:
                where = output.address(_join(folder, name))
                raise InputError(f"{where}: two inputs would be written here; rename one of them")
            taken.add(name)
            yield Item(_join(folder, path.name), _join(folder, name)), name in existing


def chunks(items: Iterable[Item], num_workers: int) -> Iterator[list[Item]]:
    """Group items for the trip to a worker: a few of them alone, so that all workers have some; many by 64.

    What a worker that dies had in hand is looked at again, so chunks stay small.
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
    """Remembers which images are being upscaled, to know one whose worker died when it comes again.

    Holds those in work and those that workers died at.
    """

    def __init__(self) -> None:
        self._started: dict[str, int] = {}
        self._deaths: dict[str, int] = {}

    def start(self, source: str) -> int:
        """Note that an image is begun; return how many workers died at it."""
        before = self._started.get(source, 0)
        self._started[source] = before + 1
        if before:
            self._deaths[source] = before
        return before

    def finish(self, source: str) -> None:
        """Note that an image is done with, well or not."""
        self._started.pop(source, None)

    def deaths(self) -> dict[str, int]:
        """Return how many workers died at which images."""
        return dict(self._deaths)


class Worker:
    """What a worker does: one model, one image after the other.

    Raises:
        InputError: this machine cannot run the model as the recipe says.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        with tempfile.TemporaryDirectory(prefix="cabm-model-") as folder:
            for name, content in recipe.model.items():
                (Path(folder) / name).write_bytes(content)
            self._upscaler = Upscaler.load(
                folder,
                engine=recipe.engine,
                device=recipe.device,
                threads=recipe.threads,
                overlap=recipe.overlap,
                tile=recipe.tile,
            )

    def __call__(self, item: Item, deaths: int = 0) -> Outcome:
        """Upscale an image; what goes wrong with it is part of the outcome.

        Args:
            item: the image.
            deaths: workers that died at it.
        """
        recipe = self._recipe
        address = recipe.source.address(item.source)
        if deaths >= MAX_DEATHS:
            return Outcome(
                address,
                f"{address}: {deaths} workers died at it, perhaps for want of memory; upscale it alone",
            )
        before = _cpu_seconds()
        try:
            if not recipe.options.overwrite and recipe.output.has(item.output):
                return Outcome(address)
            with (
                recipe.source.local_copy(item.source, recipe.job) as source,
                recipe.output.new_file(item.output, recipe.job) as output,
            ):
                report = self._upscale(Task(source, output), item)
                sizes = source.stat().st_size, output.stat().st_size
        except Exception as error:  # whatever is wrong with one image, the others can be done
            return Outcome(address, reason_of(error, address))
        peak = peak_memory()
        return Outcome(address, "", report.notes, True, _cpu_seconds() - before, *sizes, peak)

    def _upscale(self, task: Task, item: Item) -> Report:
        result = run_task(self._upscaler, task, self._recipe.options)
        if isinstance(result, Report):
            return result
        places = {task.source: self._recipe.source.address(item.source)}
        places |= {task.output: self._recipe.output.address(item.output)}
        reason = result.reason
        for path, address in places.items():
            reason = reason.replace(str(path), address)
        raise InputError(reason)  # not a result: the blocks around must not publish


def _join(folder: str, name: str) -> str:
    return str(PurePosixPath(folder, name)) if folder else name


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system
