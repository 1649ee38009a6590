"""A folder as a store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from cabm.cluster.stores import SCRATCH, Entries, Store, clean_scratch
from cabm.errors import InputError
from cabm.upscaling.jobs import existing_folder


class LocalStore:
    """A folder that all workers see under the same path."""

    def __init__(self, folder: str) -> None:
        self.url = folder
        self._root = Path(folder).resolve()

    def check_exists(self) -> None:
        """See `Store`."""
        if not self._root.is_dir():
            is_file = self._root.exists()
            raise InputError(f"{self.url}: {'is a file; name its folder' if is_file else 'no such folder'}")

    def check_writable(self) -> None:
        """See `Store`."""
        existing_folder(self._root)

    def entries(self, folder: str) -> Entries:
        """See `Store`. Links to folders are not followed."""
        try:
            with os.scandir(self._path(folder) if folder else self._root) as found:
                entries = [(entry.name, entry.is_dir(follow_symlinks=False), entry) for entry in found]
        except FileNotFoundError:
            return Entries((), ())
        files = tuple(name for name, is_folder, entry in entries if not is_folder and entry.is_file())
        folders = (name for name, is_folder, _ in entries if is_folder and not name.startswith(SCRATCH))
        return Entries(files, tuple(folders))

    def has(self, name: str) -> bool:
        """See `Store`."""
        return self._path(name).exists()

    def address(self, name: str) -> str:
        """See `Store`."""
        return str(Path(self.url) / name)

    def within(self, other: Store) -> str | None:
        """See `Store`."""
        if not isinstance(other, LocalStore) or not self._root.is_relative_to(other._root):
            return None
        return "" if self._root == other._root else self._root.relative_to(other._root).as_posix()

    def opened(self, name: str) -> AbstractContextManager[BinaryIO]:
        """See `Store`."""
        return self._path(name).open("rb")

    @contextmanager
    def local_copy(self, name: str, job: str) -> Iterator[Path]:
        """See `Store`. The path is the file itself."""
        yield self._path(name)

    @contextmanager
    def new_file(self, name: str, job: str) -> Iterator[Path]:
        """See `Store`. The file is written to a scratch folder on the same disk and then renamed."""
        target = self._path(name)
        scratch = self._root / f"{SCRATCH}{job}"
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            yield Path(folder) / target.name
            target.parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / target.name).replace(target)

    def clean(self, job: str) -> None:
        """See `Store`."""
        clean_scratch(self._root, job)

    def _path(self, name: str) -> Path:
        """Return the path of a file, whose name may come from another store; it must stay in this one."""
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
            raise InputError(f"{self.url}: {name!r} cannot be the name of a file in this folder; rename it")
        return self._root / name
