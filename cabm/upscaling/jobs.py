"""Upscale many files: check them all first, then run one after another, and report each failure.

While the last rows of an image are encoded, the network runs on the next image. Two images at most are in
memory, the first only as rows for the encoder. All files are finished, and all callbacks called, in the
thread that runs the job, so that an interrupt finds one of the two at work, or none.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path

from cabm.errors import InputError, error_line
from cabm.files import remove_leftovers
from cabm.imaging.frames import Frames, frames_of
from cabm.imaging.raster import Raster
from cabm.imaging.writer import OutputSpec
from cabm.upscaling.frames import upscale_frames
from cabm.upscaling.report import Report
from cabm.upscaling.request import UpscaleRequest
from cabm.upscaling.tasks import Task
from cabm.upscaling.trace import Progress
from cabm.upscaling.unfinished import UnfinishedFile
from cabm.upscaling.upscaler import Upscaler

STALE_SECONDS = 3600.0
"""Age after which a temporary file has no living writer; a living one writes to it all the time."""


@dataclass(frozen=True)
class Failure:
    """A file that could not be upscaled.

    Attributes:
        source: the file.
        reason: why, in one line.
        traceback: of an unexpected error; empty for errors that the user can act on.
    """

    source: Path
    reason: str
    traceback: str = ""

    @classmethod
    def of(cls, error: Exception, source: Path) -> Failure:
        """Return the failure that an error makes of a file."""
        if isinstance(error, (InputError, OSError)):
            return cls(source, error_line(error, source))
        advice = "; upscale a part of the image" if isinstance(error, MemoryError) else ""
        lines = traceback.format_exception(error)
        return cls(source, error_line(error, source) + advice, "".join(lines))


@dataclass(frozen=True)
class Survey:
    """What a job is going to do, according to the headers of its files.

    Attributes:
        todo: tasks, each with its number of tiles.
        kept: tasks whose output exists.
        failures: files that cannot be upscaled.
    """

    todo: tuple[tuple[Task, int], ...]
    kept: tuple[Task, ...]
    failures: tuple[Failure, ...]


def survey(upscaler: Upscaler, tasks: Iterable[Task], request: UpscaleRequest) -> Survey:
    """Check the headers of all files before anything is computed.

    Raises:
        InputError: all files fail for one reason, or the disk has too little room.
    """
    tasks = list(tasks)
    sources = {os.path.realpath(task.source) for task in tasks}
    todo: list[tuple[Task, int]] = []
    kept: list[Task] = []
    failures: list[Failure] = []
    needed: Counter[Path] = Counter()
    scratch: Counter[Path] = Counter()
    for task in tasks:
        try:
            if not task.source.exists():
                raise InputError(f"{task.source}: no such file")
            if task.output.exists() and task.output.samefile(task.source):
                raise InputError(f"{task.output}: would replace its own input; choose another name")
            if os.path.realpath(task.output) in sources:
                raise InputError(f"{task.output}: would replace another input; choose another folder (-o)")
            if task.output.exists() and not request.overwrite:
                kept.append(task)
                continue
            raster, spec = request.open(upscaler, task.source, task.format)
            spec.check(task.output)
            number = _frames(task, request).number
            folder = existing_folder(task.output.parent)
            num_tiles = number * sum(map(len, upscaler.plans(raster.height, raster.width, request.size)))
        except Exception as error:  # one bad file must not stop the others
            failures.append(Failure.of(error, task.source))
            continue
        needed[folder] += number * spec.estimated_bytes
        scratch[folder] = max(scratch[folder], _scratch_bytes(raster, spec, upscaler.scale))
        todo.append((task, num_tiles))
    reasons = {failure.reason for failure in failures}
    if not todo and not kept and len(failures) > 1 and len(reasons) == 1:
        raise InputError(*reasons)  # once instead of for every file
    _check_room(needed + scratch)
    return Survey(tuple(todo), tuple(kept), tuple(failures))


def run_task(
    upscaler: Upscaler, task: Task, request: UpscaleRequest, *, progress: Progress | None = None
) -> Report | Failure:
    """Upscale one file. An error is returned.

    Args:
        upscaler: the model.
        task: the file.
        request: its quality, size and limit on pixels.
        progress: called with the number of tiles that were finished.
    """
    try:
        return _start(upscaler, task, request, progress).finish()
    except Exception as error:
        return Failure.of(error, task.source)


def run_job(
    upscaler: Upscaler,
    plan: Survey,
    request: UpscaleRequest,
    *,
    on_file: Callable[[int, Task], object] | None = None,
    on_tiles: Progress | None = None,
    on_done: Callable[[Task, Report], object] | None = None,
) -> tuple[Failure, ...]:
    """Upscale the files of a survey in order; a file may be finished while tiles of the next are computed.

    Args:
        upscaler: the model.
        plan: what to do, from `survey`.
        request: as given to `survey`.
        on_file: called before each file with its number, from 0, and its task.
        on_tiles: called with the number of tiles that were finished.
        on_done: called with each finished task and its report.

    Returns:
        All failures, those of the survey first.
    """
    encoding = _Encoding(on_done, list(plan.failures))

    def on_some_tiles(count: int) -> None:
        if on_tiles is not None:
            on_tiles(count)
        encoding.finish(wait=False)

    try:
        for number, (task, _) in enumerate(plan.todo):
            if on_file is not None:
                on_file(number, task)
            try:
                unfinished = _start(upscaler, task, request, on_some_tiles)
            except Exception as error:  # one bad file must not stop the others
                if error is encoding.callback_error:
                    raise
                encoding.finish()
                encoding.failures.append(Failure.of(error, task.source))
            else:
                encoding.finish()
                encoding.file = task, unfinished
    finally:  # also after an interrupt: all of the image is computed
        encoding.finish()
    return tuple(encoding.failures)


def _start(
    upscaler: Upscaler, task: Task, request: UpscaleRequest, progress: Progress | None
) -> UnfinishedFile | FinishedFile:
    remove_leftovers(task.output, older_than_s=STALE_SECONDS)
    frames = _frames(task, request)
    if frames.number > 1:
        return FinishedFile(upscale_frames(upscaler, task, request, frames, progress=progress))
    raster, spec = request.open(upscaler, task.source, task.format)
    return upscaler.start_file(raster, task.output, spec, progress=progress)


@dataclass(frozen=True)
class FinishedFile:
    """A file that needs no more encoding; see `UnfinishedFile`."""

    report: Report
    encoded: bool = True

    def finish(self) -> Report:
        """Return the report."""
        return self.report


class _Encoding:
    """The file whose last rows are being encoded, and how files ended.

    Attributes:
        file: the file, if there is one.
        failures: of the files before it.
        callback_error: what the callback raised: no fault of a file.
    """

    def __init__(self, on_done: Callable[[Task, Report], object] | None, failures: list[Failure]) -> None:
        self.file: tuple[Task, UnfinishedFile | FinishedFile] | None = None
        self.failures = failures
        self.callback_error: Exception | None = None
        self._on_done = on_done

    def finish(self, *, wait: bool = True) -> None:
        """Finish the file; without ``wait``, only if the encoder is done."""
        if self.file is None or not (wait or self.file[1].encoded):
            return
        (task, unfinished), self.file = self.file, None
        try:
            report = unfinished.finish()
        except Exception as error:  # one bad file must not stop the others
            self.failures.append(Failure.of(error, task.source))
            return
        if self._on_done is not None:
            try:
                self._on_done(task, report)
            except Exception as error:
                self.callback_error = error
                raise


def _frames(task: Task, request: UpscaleRequest) -> Frames:
    """Return the pictures to upscale.

    Raises:
        InputError: the file is damaged, or its result cannot hold them.
    """
    frames = frames_of(task.source) if request.all_frames else Frames(1)
    frames.check_output(task.output, task.format)
    return frames


def _scratch_bytes(raster: Raster, spec: OutputSpec, scale: int) -> int:
    """Return the size of the temporary file with the result of the first of two passes."""
    height, width = raster.height * scale, raster.width * scale
    return height * width * raster.channels * raster.dtype.itemsize if spec.rows_size[0] > height else 0


def existing_folder(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists.

    Raises:
        InputError: it is not writable, or is a file.
    """
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file, not a folder; choose another folder with -o")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: this folder is not writable; choose another folder with -o")
    return folder.resolve()


def _check_room(needed: Counter[Path]) -> None:
    """Raise an error if a disk has less room than the results in its folders need."""
    by_disk: dict[int, tuple[Path, int]] = {}
    for folder, size in needed.items():
        disk = folder.stat().st_dev
        by_disk[disk] = (folder, by_disk.get(disk, (folder, 0))[1] + size)
    for folder, size in by_disk.values():
        total, _, free = shutil.disk_usage(folder)
        if total and size > free:  # some network disks state no size
            raise InputError(
                f"{folder}: not enough room: the results need about {_size(size, ceil)} and"
                f" {_size(free, floor)} are free; make room or choose another folder with -o"
            )


def _size(num_bytes: int, rounding: Callable[[float], int]) -> str:
    """Return a size with three digits, such as ``31.4 MB``."""
    unit = next(power for power in (9, 6, 3, 0) if num_bytes >= 10**power or not power)
    places = max(2 - len(str(num_bytes // 10**unit)) + 1, 0) if unit else 0
    value = rounding(num_bytes / 10**unit * 10**places) / 10**places
    return f"{value:.{places}f} { {9: 'GB', 6: 'MB', 3: 'kB', 0: 'bytes'}[unit] }"
