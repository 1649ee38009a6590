"""Upscale many files: what to write where, what is done already, what failed and why."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cabm.errors import InputError, error_line
from cabm.files import remove_leftovers
from cabm.imaging.formats import (
    DEFAULT_QUALITY,
    OUTPUT_FORMATS,
    READABLE,
    SUFFIXES,
    is_image,
    output_format,
)
from cabm.imaging.reader import open_raster
from cabm.upscaling.streaming import Progress
from cabm.upscaling.upscaler import Report, Upscaler

STALE_SECONDS = 3600.0
"""Age from which on a temporary file is nobody's: a live writer touches its file all the time."""


@dataclass(frozen=True)
class Task:
    """One file to upscale, and where to."""

    source: Path
    output: Path

    @property
    def format(self) -> str:
        """Format of the output, by its name."""
        return SUFFIXES[self.output.suffix.lower()].name


@dataclass(frozen=True)
class Failure:
    """A file that could not be upscaled, and why, in one line."""

    source: Path
    reason: str


@dataclass(frozen=True)
class Options:
    """How files are read and written.

    Attributes:
        quality: 1..100, of JPEG and WebP.
        overwrite: replace outputs that exist; else they are kept.
        max_pixels: limit on the size of inputs; None: the defaults of `cabm.imaging.reader`.
    """

    quality: int = DEFAULT_QUALITY
    overwrite: bool = False
    max_pixels: int | None = None


@dataclass(frozen=True)
class Survey:
    """What a job is going to do, found out from the headers of its files.

    Attributes:
        todo: tasks and the number of their tiles.
        kept: tasks whose output exists.
        failures: files that cannot be upscaled.
    """

    todo: tuple[tuple[Task, int], ...]
    kept: tuple[Task, ...]
    failures: tuple[Failure, ...]


def plan_tasks(
    inputs: Sequence[Path], output: Path | None, *, scale: int, file_format: str | None = None
) -> list[Task]:
    """Decide which files are upscaled and what the results are called.

    ``photo.jpg`` becomes ``photo_x4.png``, beside it or in the folder ``output``. Folders are searched
    recursively and their structure is kept; results of earlier runs in them are not upscaled again.

    Args:
        inputs: files and folders.
        output: a folder or, for a single file, the file to write; None: beside each input.
        scale: in the names.
        file_format: png, tiff, webp or jpeg; None: by the suffix of ``output``, else png.

    Raises:
        InputError: an input is missing, a folder holds no image, or names do not go together.
    """
    single = len(inputs) == 1 and not inputs[0].is_dir()
    named = None if output is None or output.is_dir() else output_format(output)
    if output is not None and named is not None:
        if not single:
            raise InputError(f"{output}: several files cannot go into one; give a folder (-o FOLDER)")
        if file_format not in (None, named.name):
            raise InputError(f"{output}: is named as {named.name}, but --format says {file_format}")
        return [Task(inputs[0], output)]
    if output is not None and output.is_file():
        raise InputError(f"{output}: is a file of another kind; give a folder or an image file name")

    files = [found for path in inputs for found in _search(path, output, scale)]
    stems = Counter((folder, source.stem) for source, folder in dict.fromkeys(files))
    tasks = []
    for source, folder in dict.fromkeys(files):
        name = result_name(source, scale, file_format, alone=stems[folder, source.stem] == 1)
        tasks.append(Task(source, folder / name))
    twice = [name for name, times in Counter(task.output for task in tasks).items() if times > 1]
    if twice:
        raise InputError(f"{twice[0]}: two inputs would be written here; upscale them one by one")
    return tasks


def result_name(source: Path, scale: int, file_format: str | None, *, alone: bool) -> str:
    """Return what the upscaled file is called: ``photo_x4.png``.

    Args:
        source: the image.
        scale: in the name.
        file_format: png, tiff, webp or jpeg; None: png.
        alone: no other image that goes to the same folder has this stem; else ``photo_jpg_x4.png``.
    """
    stem = source.stem if alone else source.name.replace(".", "_")
    return f"{stem}_x{scale}{OUTPUT_FORMATS[file_format or 'png'].suffix}"


def survey(upscaler: Upscaler, tasks: Iterable[Task], options: Options) -> Survey:
    """Look at the headers of all files, before anything is computed.

    Raises:
        InputError: an output folder cannot be written to, or the disk has not enough room.
    """
    todo: list[tuple[Task, int]] = []
    kept: list[Task] = []
    failures: list[Failure] = []
    needed: Counter[Path] = Counter()
    for task in tasks:
        if task.output.exists() and not options.overwrite:
            if not task.source.exists():
                failures.append(Failure(task.source, f"{task.source}: no such file"))
                continue
            kept.append(task)
            continue
        try:
            if task.output.exists() and task.output.samefile(task.source):
                raise InputError(f"{task.output}: would replace its own input; choose another name")
            raster = open_raster(task.source, options.max_pixels)
            spec = upscaler.output_spec(raster, task.format, options.quality)
            spec.check(task.output)
        except (InputError, OSError) as error:
            failures.append(Failure(task.source, reason_of(error, task.source)))
            continue
        needed[existing_folder(task.output.parent)] += spec.estimated_bytes
        todo.append((task, len(upscaler.plan(raster.height, raster.width))))
    _check_room(needed)
    return Survey(tuple(todo), tuple(kept), tuple(failures))


def run_task(
    upscaler: Upscaler, task: Task, options: Options, *, progress: Progress | None = None
) -> Report | Failure:
    """Upscale one file; what goes wrong with it is returned, so that a job goes on.

    Args:
        upscaler: the model.
        task: the file.
        options: see `Options`.
        progress: called with the number of tiles that are done.
    """
    try:
        remove_leftovers(task.output, older_than_s=STALE_SECONDS)
        raster = open_raster(task.source, options.max_pixels)
        spec = upscaler.output_spec(raster, task.format, options.quality)
        return upscaler.upscale_file(raster, task.output, spec, progress=progress)
    except Exception as error:  # whatever is wrong with one file, the others can be done
        return Failure(task.source, reason_of(error, task.source))


def run_job(
    upscaler: Upscaler,
    plan: Survey,
    options: Options,
    *,
    on_file: Callable[[int, Task], object] | None = None,
    on_tiles: Progress | None = None,
    on_done: Callable[[Task, Report], object] | None = None,
) -> tuple[Failure, ...]:
    """Upscale the files of a survey, one after the other.

    Args:
        upscaler: the model.
        plan: what to do, by `survey`.
        options: as given to `survey`.
        on_file: called with number (from 0) and task before each file.
        on_tiles: called with the number of tiles that are done.
        on_done: called with each finished task and its report.

    Returns:
        All failures, those of the survey first.
    """
    failures = list(plan.failures)
    for number, (task, _) in enumerate(plan.todo):
        if on_file is not None:
            on_file(number, task)
        result = run_task(upscaler, task, options, progress=on_tiles)
        if isinstance(result, Failure):
            failures.append(result)
        elif on_done is not None:
            on_done(task, result)
    return tuple(failures)


def _search(path: Path, output: Path | None, scale: int) -> list[tuple[Path, Path]]:
    """Image files of an input, with the folder that each one's result goes to."""
    if not path.is_dir():
        return [(path, path.parent if output is None else output)]
    files = sorted(file for file in path.rglob("*") if is_image(file) and file.is_file())
    if output is not None and output.resolve() != path.resolve():
        files = [file for file in files if output.resolve() not in file.resolve().parents]
    sources = without_results(files, scale)
    if not sources:
        raise InputError(f"{path}: no images in this folder ({READABLE})")
    return [
        (file, file.parent if output is None else output / file.parent.relative_to(path))
        for file in sources
    ]


def without_results(files: Iterable[Path], scale: int) -> list[Path]:
    """Leave out the files that are named as results of others; return the rest in order."""
    ending = f"_x{scale}"
    sources: list[Path] = []
    names: set[tuple[Path, str]] = set()
    for file in sorted(files, key=lambda file: (len(file.stem), file)):
        if file.stem.endswith(ending) and (file.parent, file.stem.removesuffix(ending)) in names:
            continue
        sources.append(file)
        names |= {(file.parent, file.stem), (file.parent, file.name.replace(".", "_"))}
    return sorted(sources)


def existing_folder(folder: Path) -> Path:
    """Return the folder, or the nearest one above that exists.

    Raises:
        InputError: it cannot be written to, or is a file.
    """
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file, not a folder; choose another folder with -o")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: this folder cannot be written to; choose another with -o")
    return folder.resolve()


def _check_room(needed: Counter[Path]) -> None:
    by_disk: dict[int, tuple[Path, int]] = {}
    for folder, size in needed.items():
        disk = folder.stat().st_dev
        by_disk[disk] = (folder, by_disk.get(disk, (folder, 0))[1] + size)
    for folder, size in by_disk.values():
        free = shutil.disk_usage(folder).free
        if size > free:
            raise InputError(
                f"{folder}: no room: about {size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free;"
                " make room or choose another folder with -o"
            )


def reason_of(error: BaseException, source: Path | str) -> str:
    """Return one line that names the file and what went wrong."""
    return error_line(error, source) + ("; upscale a part of it" if isinstance(error, MemoryError) else "")
