"""Which files a job upscales, and how it names the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cabm.errors import InputError
from cabm.imaging.formats import OUTPUT_FORMATS, READABLE, SUFFIXES, is_image, output_format


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
    inputs: Sequence[Path], output: Path | None, *, scale: int, file_format: str | None = None
) -> list[Task]:
    """Decide which files to upscale and what to call the results.

    ``photo.jpg`` becomes ``photo_x4.png``, in its own folder or in the folder ``output``. Folders are
    searched recursively and keep their structure. Results of earlier runs are not upscaled again.

    Args:
        inputs: files and folders.
        output: a folder or, for a single file, the file to write. None: the folder of each input.
        scale: scale factor, for the names.
        file_format: png, tiff, webp or jpeg. None: by the suffix of ``output``, otherwise png.

    Raises:
        InputError: an input is missing, a folder holds no image, two results would get one name, or
            ``output`` does not fit the inputs or the format.
    """
    single = len(inputs) == 1 and not inputs[0].is_dir()
    named = None if output is None or output.is_dir() else output_format(output)
    if output is not None and named is not None:
        if not single:
            raise InputError(f"{output}: several images cannot go into one file; give a folder (-o FOLDER)")
        if file_format not in (None, named.name):
            raise InputError(f"{output}: is named as {named.name}, but --format says {file_format}")
        return [Task(inputs[0], output)]
    if output is not None and output.is_file():
        raise InputError(f"{output}: is a file of another kind; give a folder or an image file name")

    files = list(dict.fromkeys(found for path in inputs for found in _search(path, output, scale)))
    stems = Counter((folder, source.stem) for source, folder in files)
    tasks = []
    for source, folder in files:
        name = result_name(source, scale, file_format, alone=stems[folder, source.stem] == 1)
        tasks.append(Task(source, folder / name))
    twice = [name for name, times in Counter(task.output for task in tasks).items() if times > 1]
    if twice:
        raise InputError(f"{twice[0]}: the results of two inputs get this name; upscale them one at a time")
    return tasks


def result_name(source: Path, scale: int, file_format: str | None, *, alone: bool) -> str:
    """Return the file name of a result, such as ``photo_x4.png``.

    Args:
        source: the image.
        scale: scale factor.
        file_format: png, tiff, webp or jpeg; None: png.
        alone: no other image with this stem goes to the same folder. Otherwise the name keeps the suffix:
            ``photo_jpg_x4.png``.
    """
    stem = source.stem if alone else source.name.replace(".", "_")
    return f"{stem}_x{scale}{OUTPUT_FORMATS[file_format or 'png'].suffix}"


def without_results(files: Iterable[Path], scale: int) -> list[Path]:
    """Leave out files whose names are those of other files' results; return the rest, sorted."""
    ending = f"_x{scale}"
    sources: list[Path] = []
    names: set[tuple[Path, str]] = set()
    for file in sorted(files, key=lambda file: (len(file.stem), file)):
        if file.stem.endswith(ending) and (file.parent, file.stem.removesuffix(ending)) in names:
            continue
        sources.append(file)
        names |= {(file.parent, file.stem), (file.parent, file.name.replace(".", "_"))}
    return sorted(sources)


def _search(path: Path, output: Path | None, scale: int) -> list[tuple[Path, Path]]:
    """Return the images of an input, each with the folder for its result."""
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
