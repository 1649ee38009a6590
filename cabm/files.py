"""Reading JSON, and writing files and directories so that no incomplete one is ever seen."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cabm.errors import InputError

_NOT_SUPPORTED = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})
"""What disks answer that cannot flush: some network and FUSE mounts."""
_NAMED_CHARACTERS = 40  # of up to 4 bytes: a name may have 255, with 8 random ones and a suffix


def temporary_prefix(name: str) -> str:
    """Return how temporary names beside a file begin; `remove_leftovers` knows them."""
    return f".{name[:_NAMED_CHARACTERS]}-"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path``, which replaces ``path`` if the block does not raise.

    The temporary file has the suffix of ``path``, because image writers choose their format by it. It is
    removed if the block raises.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # tempfile would make it private, and some disks refuse to change that
        new = path.parent / f"{temporary_prefix(path.stem)}{secrets.token_hex(4)}{path.suffix}"
        new.touch(exist_ok=False)
        temporary = new
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    except OSError as error:
        _name(error, path, temporary)
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Force a file onto the disk, so that a power cut after the renaming cannot empty it."""
    with path.open("rb") as written:
        try:
            os.fsync(written.fileno())
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:  # the file is whole without it
                raise


def _name(error: OSError, path: Path, temporary: Path | None) -> None:
    """Make an error name the target: that of a full disk names no file, others name the temporary one."""
    if error.errno is None:
        return  # raised by a library, not by the file system
    found = str(error.filename or "")
    if not found or str(temporary) in found or Path(found).name.startswith(temporary_prefix(path.stem)):
        error.filename = str(path)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``path``, which replaces ``path`` if the block does not raise.

    At any moment, even if the process is killed, ``path`` is the whole old directory, the whole new one or
    absent.

    Raises:
        InputError: ``path`` is a file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; name a folder")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=temporary_prefix(path.name), dir=path.parent))
        new = temporary / "new"
        new.mkdir()
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            path.replace(temporary / "old")
        new.replace(path)
    except OSError as error:
        _name(error, path, temporary)
        raise
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(path: str | Path, *, older_than_s: float = 0.0) -> None:
    """Remove the temporary files and directories that killed writers of ``path`` left beside it.

    Args:
        path: target of `atomic_write` or `atomic_directory`.
        older_than_s: keep those that were modified less than this many seconds ago; 0 if there can be no
            other writer.
    """
    path = Path(path)
    of_file, of_folder = (re.escape(temporary_prefix(name)) for name in (path.stem, path.name))
    name = re.compile(rf"{of_file}[a-z0-9_]{{8}}{re.escape(path.suffix)}|{of_folder}[a-z0-9_]{{8}}")
    if not path.parent.is_dir():
        return
    for left in path.parent.glob(".*"):
        with suppress(OSError):  # it is gone, or another user's
            if not name.fullmatch(left.name) or time.time() - left.stat().st_mtime < older_than_s:
                continue
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, unreadable or not JSON.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        # JSON can hold half a surrogate pair, which can be neither printed nor written
        json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8, and very long integers
        raise InputError(f"{path}: not valid JSON ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
