"""Checks on the folders and files that commands write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cabm.errors import InputError
from cabm.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS = (".json", ".safetensors")
"""Suffixes of the files in a model directory."""
_FIGURES = (".png", ".svg", ".pdf")


def replaceable_folder(path: Path) -> Path:
    """Return ``path`` if it is new, empty, or a model directory, which a command may replace as a whole.

    Raises:
        InputError: it contains other files or folders; the message names the first.
    """
    if path.is_dir():
        foreign = [entry for entry in sorted(path.iterdir()) if entry.is_dir() or entry.suffix not in OURS]
        if foreign:
            raise InputError(f"{path}: contains other files, such as {foreign[0].name}; name a new folder")
    return path


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
