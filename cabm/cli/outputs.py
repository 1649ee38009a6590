"""Checks on the folders and files that commands write."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote

import typer

from cabm.errors import InputError
from cabm.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]

OURS = (".json", ".safetensors")
"""Suffixes of the files in a model directory."""
_FIGURES = (".png", ".svg", ".pdf")


def check_model_folder(path: Path, *, overwrite: bool = False) -> None:
    """Check a model directory to write, which is replaced as a whole, before anything is computed.

    Args:
        path: the directory.
        overwrite: whether it may replace an existing model directory.

    Raises:
        InputError: it is a file, contains other files or folders, or exists.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; name a folder")
    found = sorted(path.iterdir()) if path.is_dir() else []
    foreign = [entry for entry in found if entry.is_dir() or entry.suffix not in OURS]
    if foreign:
        raise InputError(f"{path}: contains other files, such as {foreign[0].name}; name a new folder")
    if found and not overwrite:
        raise InputError(f"{path}: exists; give --overwrite to replace it, or another name")


def check_new_file(path: Path, others: Iterable[Path] = (), *, overwrite: bool = False) -> None:
    """Check a file to write before anything is computed.

    Args:
        path: the file.
        others: inputs, and other files to write, which it must not replace.
        overwrite: whether it may replace an existing file.

    Raises:
        InputError: it exists, or is one of the others.
    """
    for other in others:
        same = path.exists() and other.exists() and path.samefile(other)  # also links
        if same or os.path.realpath(path) == os.path.realpath(other):
            raise InputError(f"{path}: is another file of this command ({other}); choose another name")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists; give --overwrite to replace it, or another name")


def check_no_url(place: str) -> None:
    """Refuse a URL where only local files are read and written.

    Raises:
        InputError: it is a URL; the message says how to use its files.
    """
    scheme, separator, rest = place.partition(":")
    if not separator or not (rest.startswith("//") or scheme == "file") or Path(place).exists():
        return
    advice = {
        "s3": "use `cabm cluster upscale` for buckets",
        "file": f"give the path {unquote(rest.removeprefix('//').removeprefix('localhost'))}",
        "http": "download it first",
    }
    kind = scheme.lower().replace("https", "http")
    raise InputError(f"{place}: {advice.get(kind, 'copy it to this machine first')}")


def check_figure_name(path: Path) -> None:
    """Refuse a name without a known figure format, before anything is computed.

    Raises:
        InputError: it does not end in .png, .svg or .pdf.
    """
    if path.suffix.lower() not in _FIGURES:
        raise InputError(f"{path}: unknown figure format; name a file that ends in {', '.join(_FIGURES)}")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its suffix, atomically."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
