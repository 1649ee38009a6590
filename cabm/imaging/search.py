"""Find the images in folders, and name what is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cabm.imaging.formats import OTHER_IMAGES, SUFFIXES, is_image, missing_operation

_SYSTEM_FOLDERS = (
    "@eadir",
    "#recycle",
    "#snapshot",
    "__macosx",
    "$recycle.bin",
    "system volume information",
    "lost+found",
)
"""Folders of NAS systems, archives and recycle bins, in lower case. Names with a dot are hidden anyway."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        images: files that are named as readable images, sorted.
        unsupported: names of images of other formats.
        unreadable: folders that could not be listed, each with the reason.
    """

    images: tuple[Path, ...]
    unsupported: tuple[str, ...]
    unreadable: tuple[str, ...]


def find_images(folder: Path, *, recursive: bool = True) -> Found:
    """Find the images in a folder; hidden and system folders inside it are left out."""
    images: list[Path] = []
    unsupported: list[str] = []
    errors: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if recursive and not is_left_out(name)]
        images += [path for path in (Path(parent, name) for name in files) if is_image(path)]
        unsupported += [name for name in files if is_unsupported(name)]
    unreadable = tuple(f"{error.filename}: cannot be read ({error.strerror})" for error in errors)
    return Found(tuple(sorted(images)), tuple(unsupported), unreadable)


def is_left_out(folder: str) -> bool:
    """Return whether a folder of this name is hidden or belongs to a system."""
    return folder.startswith(".") or folder.lower() in _SYSTEM_FOLDERS


def is_unsupported(file: str) -> bool:
    """Return whether a file name is that of an image that the package does not read."""
    suffix = Path(file).suffix.lower()
    if file.startswith("."):
        return False
    return suffix in OTHER_IMAGES or (suffix in SUFFIXES and not is_image(Path(file)))


def left_out(unsupported: Iterable[str]) -> str:
    """Describe unsupported images: ``left out 3 files: 2 .jp2, 1 .psd (not supported)``; empty if none.

    If a package or a build of libvips would read some, this is told.
    """
    suffixes = Counter(Path(name).suffix.lower() for name in unsupported)
    total = suffixes.total()
    kinds = ", ".join(f"{number} {suffix}" for suffix, number in suffixes.most_common())
    known = (missing_operation(SUFFIXES[suffix], "load") for suffix in suffixes if suffix in SUFFIXES)
    why = "; ".join(["not supported", *sorted({reason for reason in known if reason})])
    return f"left out {total} file{'' if total == 1 else 's'}: {kinds} ({why})" if total else ""
