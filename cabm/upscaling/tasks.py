"""Which files a job upscales, and how it names the results."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cabm.errors import InputError
from cabm.imaging.formats import OUTPUT_FORMATS, READABLE, SUFFIXES, ImageFormat, output_format
from cabm.imaging.frames import frames_of
from cabm.imaging.mark import is_result, results_left_out
from cabm.imaging.search import find_images, left_out
from cabm.upscaling.size import AS_COMPUTED, SIZE_NAME, OutputSize

_RESULT = re.compile(rf"(.+)_({SIZE_NAME})", re.DOTALL)
_FILE_SUFFIX = re.compile(r"\.[a-z][a-z0-9]*")


@dataclass(frozen=True)
class Task:
    """One file to upscale, and the file to write."""

    source: Path
    output: Path

    @property
    def format(self) -> str:
        """Output format, from the file name."""
        return SUFFIXES[self.output.suffix.lower()].name


def plan_tasks(
    inputs: Sequence[Path],
    output: Path | None,
    *,
    scale: int,
    size: OutputSize = AS_COMPUTED,
    file_format: str | None = None,
    all_frames: bool = False,
    note: Callable[[str], object] = lambda line: None,
    problem: Callable[[str], object] = lambda line: None,
) -> list[Task]:
    """Decide which files to upscale and what to call the results.

    ``photo.jpg`` becomes ``photo_x4.png``, or ``photo_3840x2160.png`` where that size is asked for, in its
    own folder or in the folder ``output``. Folders are searched recursively and keep their structure.
    Results of earlier runs are not upscaled again, and no result gets the name of an input.

    Args:
        inputs: files and folders.
        output: a folder or, for a single file, the file to write. None: the folder of each input.
        scale, size: upscaling factor of the model and size of the results, for the names.
        file_format: png, tiff, webp or jpeg. None: by the suffix of ``output``, otherwise png.
        all_frames: name files with several pictures by a format that holds them: TIFF pages, or WebP.
        note: called with a line for each kind of file in the folders that is left out.
        problem: called with a line for each folder that cannot be read.

    Raises:
        InputError: an input is missing, a folder holds no image, two results would get one name, or
            ``output`` does not fit the inputs or the format.
    """
    single = len(inputs) == 1 and not inputs[0].is_dir()
    named = None if output is None or output.is_dir() else _named_format(output, single)
    if output is not None and named is not None:
        if not single:
            raise InputError(f"{output}: several images cannot go into one file; give a folder (-o FOLDER)")
        if file_format not in (None, named.name):
            raise InputError(f"{output}: is named as {named.name}, but --format says {file_format}")
        return [Task(inputs[0], output)]
    if output is not None and output.is_file():
        raise InputError(f"{output}: is a file of another kind; give a folder or an image file name")

    files = _sources(inputs, output, note, problem)
    stems = Counter((folder, source.stem) for source, folder in files)
    taken = {os.path.realpath(source) for source, _ in files}
    ending, tasks = size.name(scale), []
    for source, folder in files:
        chosen = _frames_format(source) if all_frames and file_format is None else file_format
        name = result_name(source, ending, chosen, alone=stems[folder, source.stem] == 1)
        if os.path.realpath(folder / name) in taken:  # a photograph that only looks like a result
            name = result_name(source, ending, chosen, alone=False)
        tasks.append(Task(source, folder / name))
    names = Counter(os.path.realpath(task.output) for task in tasks)
    twice = [task.output for task in tasks if names[os.path.realpath(task.output)] > 1]
    if twice:
        raise InputError(f"{twice[0]}: the results of two inputs get this name; upscale them one at a time")
    return tasks


def _frames_format(source: Path) -> str | None:
    """Return the format for all pictures of a file; None: any format, or the survey says what is wrong."""
    try:
        return frames_of(source).format
    except (InputError, OSError):
        return None


def _named_format(output: Path, single: bool) -> ImageFormat | None:
    """Return the format that the name of a new output asks for; None: a folder.

    Raises:
        InputError: the name is that of an image, or of one file, in a format that is not written.
    """
    suffix = output.suffix.lower()
    named = suffix not in SUFFIXES and _FILE_SUFFIX.fullmatch(suffix)
    if single and named and not output.exists():
        raise InputError(
            f"{output}: cannot write {suffix[1:]}; use one of {', '.join(OUTPUT_FORMATS)},"
            " or make the folder first if it is one"
        )
    return output_format(output)


def result_name(source: Path, ending: str, file_format: str | None, *, alone: bool) -> str:
    """Return the file name of a result, such as ``photo_x4.png``.

    Args:
        source: the image.
        ending: size of the result, from `OutputSize.name`.
        file_format: png, tiff, webp or jpeg; None: png.
        alone: no other image with this stem goes to the same folder. Otherwise the name keeps the suffix:
            ``photo_jpg_x4.png``.
    """
    stem = source.stem if alone else source.name.replace(".", "_")
    return f"{stem}_{ending}{OUTPUT_FORMATS[file_format or 'png'].suffix}"


def _sources(
    inputs: Sequence[Path],
    output: Path | None,
    note: Callable[[str], object],
    problem: Callable[[str], object],
) -> list[tuple[Path, Path]]:
    """Return the files to upscale, each once, with the folders for their results."""
    files: dict[str, tuple[Path, Path]] = {}
    unsupported: list[str] = []
    num_results = 0
    for path in inputs:
        if not path.is_dir():
            files.setdefault(_identity(path), (path, path.parent if output is None else output))
            continue
        found = find_images(path)
        unsupported += found.unsupported
        for line in found.unreadable:
            problem(line)
        images = _outside(found.images, path, output)
        sources = [file for file in images if not is_result(file)]
        num_results += len(images) - len(sources)
        if not sources:
            skipped = f"; {left_out(found.unsupported)}" if found.unsupported else ""
            skipped += f"; left out {len(images)} results of earlier runs" if images else ""
            skipped += "".join(f"; {line}" for line in found.unreadable[:1])
            raise InputError(f"{path}: no images in this folder ({READABLE}){skipped}")
        for file in sources:
            folder = file.parent if output is None else output / file.parent.relative_to(path)
            files.setdefault(_identity(file), (file, folder))
    # a pattern of the shell, such as *.png, also names the results beside the originals
    named = [file for file, _ in files.values()]
    entries = [
        entry for entry in files.values() if not (_has_original(entry[0], named) and is_result(entry[0]))
    ]
    num_results += len(files) - len(entries)
    if unsupported:
        note(left_out(unsupported))
    if num_results:
        note(results_left_out(num_results))
    return entries


def _identity(path: Path) -> str:
    """Return the absolute path of a file itself: a link is a file of its own."""
    return str(path.parent.resolve() / path.name)


def _outside(files: Iterable[Path], folder: Path, output: Path | None) -> list[Path]:
    """Leave out the files below ``output``, if that is another folder."""
    if output is None or output.resolve() == folder.resolve():
        return list(files)
    return [file for file in files if output.resolve() not in file.resolve().parents]


def _has_original(file: Path, files: Iterable[Path]) -> bool:
    """Return whether a file is named as the result of another file beside it."""
    match = _RESULT.fullmatch(file.stem)
    beside = (other for other in files if other.parent == file.parent and other != file)
    return match is not None and any(
        match[1] in (other.stem, other.name.replace(".", "_")) for other in beside
    )
