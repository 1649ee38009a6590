"""Figures as files that a user names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cabm.errors import InputError
from cabm.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".pdf")


def check_figure_name(path: Path) -> None:
    """Refuse a name that says no figure format, before anything is computed.

    Raises:
        InputError: it does not end in .png, .svg or .pdf.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{path}: cannot draw into this; name a file that ends in {', '.join(_SUFFIXES)}")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its name; never leaves half a file."""
    check_figure_name(path)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
