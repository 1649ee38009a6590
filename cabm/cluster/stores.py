"""Where many images lie and their results go: a folder, local or shared, or a bucket of an object store.

Names in a store are relative paths with ``/``, as the file system or the object store spells them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from cabm.errors import InputError
from cabm.upscaling.jobs import STALE_SECONDS, existing_folder

if TYPE_CHECKING:
    from pyarrow.fs import S3FileSystem

_SCRATCH = ".cabm-"


@dataclass(frozen=True)
class Entries:
    """What a folder holds, by name: without the folder's own."""

    files: tuple[str, ...]
    folders: tuple[str, ...]


class Store(Protocol):
    """Files by name, in one place.

    A store can be sent to another process, which connects by itself.

    Attributes:
        url: the place, as the user gave it.
    """

    url: str

    def check_exists(self) -> None:
        """Check that there is such a place.

        Raises:
            InputError: there is not, or it cannot be reached.
        """
        ...

    def check_writable(self) -> None:
        """Check that results can go there, as far as that is known without writing.

        Raises:
            InputError: they cannot.
        """
        ...

    def entries(self, folder: str) -> Entries:
        """List a folder (empty: the place itself); one that is missing holds nothing."""
        ...

    def has(self, name: str) -> bool:
        """Tell whether there is a file of that name; if so, it is whole."""
        ...

    def address(self, name: str) -> str:
        """Return how messages call a file."""
        ...

    def within(self, other: Store) -> str | None:
        """Return the name of this place in another store; None if it is not below that."""
        ...

    def local_copy(self, name: str, job: str) -> AbstractContextManager[Path]:
        """Give a block a path to read the file from."""
        ...

    def new_file(self, name: str, job: str) -> AbstractContextManager[Path]:
        """Give a block a path to write; the file has its name, whole, when the block ends well."""
        ...

    def clean(self, job: str) -> None:
        """Remove what killed workers of a job left on this machine; of other jobs what is old."""
        ...


class LocalStore:
    """A folder that all workers see at the same path."""

    def __init__(self, folder: str) -> None:
        self.url = folder
        self._root = Path(folder).resolve()

    def check_exists(self) -> None:
        """See `Store`."""
        if not self._root.is_dir():
            what = "is a file; name the folder that it is in" if self._root.exists() else "no such folder"
            raise InputError(f"{self.url}: {what}")

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
        folders = (name for name, is_folder, _ in entries if is_folder and not name.startswith(_SCRATCH))
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

    @contextmanager
    def local_copy(self, name: str, job: str) -> Iterator[Path]:
        """See `Store`; it is the file itself."""
        yield self._path(name)

    @contextmanager
    def new_file(self, name: str, job: str) -> Iterator[Path]:
        """See `Store`; it is written beside, on the same disk, and renamed."""
        target = self._path(name)
        self._scratch(job).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch(job)) as folder:
            yield Path(folder) / target.name
            target.parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / target.name).replace(target)

    def clean(self, job: str) -> None:
        """See `Store`."""
        _clean(self._root, f"{_SCRATCH}{job}")

    def _scratch(self, job: str) -> Path:
        return self._root / f"{_SCRATCH}{job}"

    def _path(self, name: str) -> Path:
        """Path of a name, which may come from another store: it stays within this one."""
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
            raise InputError(f"{self.url}: {name!r} cannot be the name of a file in this folder; rename it")
        return self._root / name


class S3Store:
    """A bucket of an object store that speaks S3, or a part of it.

    Credentials, region and endpoint are found as usual: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
    ``AWS_REGION``, ``AWS_ENDPOINT_URL``, ``~/.aws``, or the role of the machine. An object appears when its
    upload is complete, so every object that is there is whole.
    """

    def __init__(self, url: str) -> None:
        self._root = url.removeprefix("s3://").rstrip("/")
        self._bucket = self._root.split("/")[0]
        if not self._bucket:
            raise InputError(f"{url}: names no bucket; write s3://BUCKET/FOLDER")
        self.url = f"s3://{self._root}"

    def __getstate__(self) -> dict[str, str]:
        return {name: value for name, value in vars(self).items() if name != "_files"}

    @cached_property
    def _files(self) -> S3FileSystem:
        from pyarrow.fs import S3FileSystem, resolve_s3_region

        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if region is None and endpoint is None:
            region = resolve_s3_region(self._bucket)
        return S3FileSystem(endpoint_override=endpoint, region=region)

    def check_exists(self) -> None:
        """See `Store`."""
        if self._is_missing(self._root):
            raise InputError(f"{self.url}: there is nothing under this name")

    def check_writable(self) -> None:
        """See `Store`."""
        if self._is_missing(self._bucket):
            raise InputError(f"{self.url}: there is no bucket of this name")

    def entries(self, folder: str) -> Entries:
        """See `Store`."""
        from pyarrow.fs import FileSelector, FileType

        found = self._files.get_file_info(FileSelector(self._key(folder), allow_not_found=True))
        return Entries(
            tuple(info.base_name for info in found if info.type == FileType.File),
            tuple(info.base_name for info in found if info.type == FileType.Directory),
        )

    def has(self, name: str) -> bool:
        """See `Store`."""
        from pyarrow.fs import FileType

        return self._files.get_file_info(self._key(name)).type == FileType.File

    def address(self, name: str) -> str:
        """See `Store`."""
        return f"{self.url}/{name}"

    def within(self, other: Store) -> str | None:
        """See `Store`."""
        if not isinstance(other, S3Store) or not f"{self._root}/".startswith(f"{other._root}/"):
            return None
        return self._root[len(other._root) + 1 :]

    @contextmanager
    def local_copy(self, name: str, job: str) -> Iterator[Path]:
        """See `Store`; it is downloaded, and removed after the block."""
        from pyarrow.fs import LocalFileSystem, copy_files

        with _local_folder(job) as folder:
            path = folder / f"source{PurePosixPath(name).suffix}"
            copy_files(self._key(name), str(path), self._files, LocalFileSystem(), use_threads=False)
            yield path

    @contextmanager
    def new_file(self, name: str, job: str) -> Iterator[Path]:
        """See `Store`; it is written on this machine's disk first."""
        from pyarrow.fs import LocalFileSystem, copy_files

        with _local_folder(job) as folder:
            path = folder / f"result{PurePosixPath(name).suffix}"
            yield path
            copy_files(str(path), self._key(name), LocalFileSystem(), self._files, use_threads=False)
            self._check_size(name, path.stat().st_size)

    def _is_missing(self, key: str) -> bool:
        from pyarrow.fs import FileType

        try:
            return self._files.get_file_info(key).type == FileType.NotFound
        except OSError as error:
            raise InputError(f"{self.url}: cannot be reached ({' '.join(str(error).split())})") from None

    def _check_size(self, name: str, size: int) -> None:
        """Remove an object that is not whole: Arrow completes an upload whose local side failed."""
        stored = self._files.get_file_info(self._key(name)).size
        if stored != size:
            self._files.delete_file(self._key(name))
            raise InputError(f"{self.address(name)}: {stored} of {size} bytes arrived; run the job again")

    def clean(self, job: str) -> None:
        """See `Store`."""
        _clean(Path(tempfile.gettempdir()), f"{_SCRATCH}{job}")

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def open_store(place: str) -> Store:
    """Return the store at a folder or ``s3://BUCKET/FOLDER``.

    Raises:
        InputError: another kind of URL, or no bucket.
    """
    scheme, separator, _ = place.partition("://")
    if not separator:
        return LocalStore(place)
    if scheme != "s3":
        raise InputError(f"{place}: {scheme}:// cannot be read; give a folder or s3://BUCKET/FOLDER")
    return S3Store(place)


@contextmanager
def _local_folder(job: str) -> Iterator[Path]:
    """Make a folder on this machine's disk for the block."""
    parent = Path(tempfile.gettempdir()) / f"{_SCRATCH}{job}"
    parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


def _clean(parent: Path, own: str) -> None:
    """Remove a job's scratch folder in ``parent``, and those of others that nobody touches any more."""
    if not parent.is_dir():
        return
    for folder in parent.glob(f"{_SCRATCH}*"):
        if not folder.is_dir() or folder.is_symlink():
            continue
        touched = max((_modified(path) for path in (folder, *folder.rglob("*"))), default=0.0)
        if folder.name == own or time.time() - touched > STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _modified(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:  # its worker was faster
        return 0.0
