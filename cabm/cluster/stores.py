"""Where the images of a job are and where its results go: the interface of folders and buckets."""

from __future__ import annotations

import shutil
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from cabm.upscaling.jobs import STALE_SECONDS

SCRATCH = ".cabm-"
"""Prefix of the folders for files in progress; the name of the job follows."""


@dataclass(frozen=True)
class Entries:
    """The files and folders in a folder: their names, without the folder's own."""

    files: tuple[str, ...]
    folders: tuple[str, ...]


class Store(Protocol):
    """A folder or bucket of files.

    File names are paths relative to the store, separated by ``/``, as the file system or the object store
    spells them. A store can be sent to another process, which opens its own connection.

    Attributes:
        url: the place, as the user gave it.
    """

    url: str

    def check_exists(self) -> None:
        """Check that the place exists.

        Raises:
            InputError: it does not, or cannot be reached.
        """
        ...

    def check_writable(self) -> None:
        """Check that results can go to the place, as far as can be told without writing.

        Raises:
            InputError: they cannot.
        """
        ...

    def entries(self, folder: str) -> Entries:
        """List a folder; an empty name is the store itself. A missing folder is empty."""
        ...

    def has(self, name: str) -> bool:
        """Return whether a file exists. Files that exist are complete."""
        ...

    def address(self, name: str) -> str:
        """Return the name of a file for messages."""
        ...

    def within(self, other: Store) -> str | None:
        """Return the name of this place in another store; None if this place is not inside the other."""
        ...

    def opened(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file for reading parts of it."""
        ...

    def local_copy(self, name: str, job: str) -> AbstractContextManager[Path]:
        """Give a block a local path from which to read a file."""
        ...

    def new_file(self, name: str, job: str) -> AbstractContextManager[Path]:
        """Give a block a local path to write. If the block ends without error, the file appears, whole."""
        ...

    def clean(self, job: str) -> None:
        """Remove what killed workers of a job left on this machine, and old leftovers of other jobs."""
        ...


def clean_scratch(parent: Path, job: str) -> None:
    """Remove a job's scratch folder from ``parent``, and old ones of other jobs."""
    if not parent.is_dir():
        return
    for folder in parent.glob(f"{SCRATCH}*"):
        if not folder.is_dir() or folder.is_symlink():
            continue
        touched = max((_modified(path) for path in (folder, *folder.rglob("*"))), default=0.0)
        if folder.name == f"{SCRATCH}{job}" or time.time() - touched > STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)  # other workers may be removing it too


def _modified(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:  # its worker has just removed it
        return 0.0
