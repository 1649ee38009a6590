"""A bucket as a store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from cabm.cluster.stores import SCRATCH, Entries, Store, clean_scratch
from cabm.errors import InputError

if TYPE_CHECKING:
    from pyarrow.fs import S3FileSystem


class S3Store:
    """A bucket of an object store that speaks S3, or a folder of one.

    Credentials, region and endpoint come from the usual places: ``AWS_ACCESS_KEY_ID``,
    ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``, ``~/.aws``, or the role of the machine.
    An object appears when its upload is complete, so objects that exist are complete.

    Raises:
        InputError: the URL names no bucket.
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
            raise InputError(f"{self.url}: nothing has this name")

    def check_writable(self) -> None:
        """See `Store`."""
        if self._is_missing(self._bucket):
            raise InputError(f"{self.url}: no such bucket")

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

    def opened(self, name: str) -> AbstractContextManager[BinaryIO]:
        """See `Store`. Each part is a request."""
        return self._files.open_input_file(self._key(name))

    @contextmanager
    def local_copy(self, name: str, job: str) -> Iterator[Path]:
        """See `Store`. The file is downloaded, and removed after the block."""
        from pyarrow.fs import LocalFileSystem, copy_files

        with _scratch_folder(job) as folder:
            path = folder / f"source{PurePosixPath(name).suffix}"
            copy_files(self._key(name), str(path), self._files, LocalFileSystem(), use_threads=False)
            yield path

    @contextmanager
    def new_file(self, name: str, job: str) -> Iterator[Path]:
        """See `Store`. The file is written to this machine's disk and then uploaded."""
        from pyarrow.fs import LocalFileSystem, copy_files

        with _scratch_folder(job) as folder:
            path = folder / f"result{PurePosixPath(name).suffix}"
            yield path
            copy_files(str(path), self._key(name), LocalFileSystem(), self._files, use_threads=False)
            self._check_size(name, path.stat().st_size)

    def clean(self, job: str) -> None:
        """See `Store`."""
        clean_scratch(Path(tempfile.gettempdir()), job)

    def _is_missing(self, key: str) -> bool:
        from pyarrow.fs import FileType

        try:
            return self._files.get_file_info(key).type == FileType.NotFound
        except OSError as error:
            raise InputError(f"{self.url}: cannot be reached ({' '.join(str(error).split())})") from error

    def _check_size(self, name: str, size: int) -> None:
        """Remove an incomplete object: Arrow completes an upload even if reading the local file failed."""
        stored = self._files.get_file_info(self._key(name)).size
        if stored != size:
            self._files.delete_file(self._key(name))
            raise InputError(f"{self.address(name)}: {stored} of {size} bytes arrived; run the job again")

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


@contextmanager
def _scratch_folder(job: str) -> Iterator[Path]:
    """Make a folder on this machine's disk for the block."""
    parent = Path(tempfile.gettempdir()) / f"{SCRATCH}{job}"
    parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)
