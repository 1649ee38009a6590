"""Compiled loops kept on disk, in the user's cache folder.

numba's own cache writes beside the package, and trusts what it reads. This one puts a checksum on every
file and a lock on every loop. A process that finds another one compiling waits for its code. numba keeps
code by its version, the CPU, the loop's source and the types of arguments; other code is not used.

numba also keeps every loop in LLVM's form, to compile it into loops that call it. That is three quarters of
the file, and reading it takes memory and a third of the time of loading. So it is left out.
"""

from __future__ import annotations

import hashlib
import io
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numba
from filelock import FileLock, Timeout
from llvmlite import binding
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    IndexDataCacheFile,
    UserProvidedCacheLocator,
    UserWideCacheLocator,
)
from numba.core.environment import Environment, lookup_environment
from numba.core.runtime import _nrt_python

from cabm.machine.folders import cache_folder

log = logging.getLogger(__name__)

QUIET_SECONDS = 1.0
"""Shorter compilations are not reported."""

PATIENCE_SECONDS = 120.0
"""After this time, a process compiles what another one seems to be compiling."""

TESTED_NUMBA = "0.68."
"""Versions of numba whose code loads without what only compiling needs."""

LEAN = "object and names"
"""Marks libraries that are kept without LLVM's form of the code."""


def code_folder() -> Path:
    """Return the folder of compiled code. It is not used where NUMBA_CACHE_DIR names another."""
    return cache_folder() / "compiled"


class CompiledCode(FunctionCache):
    """The kept code of one function.

    Args:
        function: to compile.

    Raises:
        RuntimeError: no folder can be written.
    """

    def __init__(self, function: Any) -> None:
        self._impl_class = _InUserFolder
        super().__init__(function)
        locator = self._impl.locator
        name = self._impl.filename_base
        self._cache_file = _CheckedFiles(self.cache_path, name, locator.get_source_stamp())
        self._lock = FileLock(Path(self.cache_path) / f"{name}.lock")
        self._report: threading.Timer | None = None

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the code for a signature; None, with the lock held, if the caller must compile it."""
        found = self._load(sig, target_context)
        if found is not None:
            return found
        try:
            self._lock.acquire(timeout=PATIENCE_SECONDS)
        except (Timeout, OSError):  # a stuck process, or a disk that knows no locks
            return self._begin()
        found = self._load(sig, target_context)  # another process has compiled it
        if found is not None:
            self._lock.release(force=True)
            return found
        return self._begin()

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the code; a full disk does not matter."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            log.info("compiled code cannot be kept in %s (%s)", self.cache_path, error)
        finally:
            self._end()

    def _load(self, sig: Any, target_context: Any) -> Any:
        try:
            if not _tested():
                return super().load_overload(sig, target_context)
            # what that does without its first step, which imports all that compiling needs, compiles what
            # counts references and takes five times as long. Compiled code contains that. It refers only to
            # the symbols of numba's runtime; without them the process crashes, which is why other versions
            # take the long way.
            _add_runtime_symbols()
            with self._guard_against_spurious_io_errors():
                return self._load_overload(sig, target_context)
        except Exception as error:  # such as a module that the code needs and that has moved
            log.info("compiled code cannot be loaded from %s (%s)", self.cache_path, error)
            return None

    def _begin(self) -> None:
        self._report = threading.Timer(QUIET_SECONDS, _report, [Path(self.cache_path).parent])
        self._report.daemon = True
        self._report.start()

    def _end(self) -> None:
        if self._report is not None:
            self._report.cancel()
        self._lock.release(force=True)


@cache
def _report(folder: Path) -> None:
    """Log that loops are compiled; cached, so only the first one is reported."""
    log.info("compiling for this CPU, once: takes seconds, kept in %s", folder)


class _UserFolder(UserWideCacheLocator):
    def __init__(self, py_func: Any, py_file: str) -> None:
        super().__init__(py_func, py_file)
        self._cache_path = str(code_folder() / self.get_suitable_cache_subpath(py_file))


class _InUserFolder(CompileResultCacheImpl):
    _locator_classes = (UserProvidedCacheLocator, _UserFolder)

    def reduce(self, data: Any) -> tuple:
        """Return what to keep of a compiled loop."""
        library, *others, environments = super().reduce(data)
        if not _tested() or library[1] != "object":
            return library, *others, environments
        return _lean(library), *others, tuple(each.__reduce__()[1] for each in environments)

    def rebuild(self, target_context: Any, payload: tuple) -> Any:
        """Return the loop from what was kept, perhaps by an earlier version of this package."""
        (name, kind, content), *others, environments = payload
        if kind == LEAN:
            code, symbols = content
            target_context.codegen()._engine._defined_symbols.update(symbols)
            kind, content = "object", (code, binding.parse_assembly("").as_bitcode())
            environments = tuple(_environment(*each) for each in environments)
        return super().rebuild(target_context, ((name, kind, content), *others, environments))


def _lean(library: tuple) -> tuple:
    """Return what numba keeps of a library, with the names of its symbols in place of LLVM's form."""
    name, _, (code, bitcode) = library
    module = binding.parse_bitcode(bitcode)
    symbols = [
        each.name
        for group in (module.functions, module.global_variables)
        for each in group
        if not each.is_declaration
    ]
    return name, LEAN, (code, symbols)


def _environment(module: str, constants: list, name: str) -> Environment:
    """Return what numba keeps of a function that a loop calls, without importing the function's module.

    Code refers to its constants only; functions that look up globals at run time are none of a loop's.
    """
    found = lookup_environment(name)
    if found is None:
        found = Environment({"__name__": module})
        found.consts[:] = constants
        found.env_name = name
        Environment._memo[name] = found
    return found


def _add_runtime_symbols() -> None:
    """Tell LLVM where the functions of numba's runtime are, which compiled code calls."""
    for name, address in _nrt_python.c_helpers.items():
        binding.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


def _tested() -> bool:
    return numba.__version__.startswith(TESTED_NUMBA)


class _CheckedFiles(IndexDataCacheFile):
    """Files that end in a checksum, which numba's reader ignores. Damaged files count as missing."""

    def _load_index(self) -> dict:
        return super()._load_index() if _intact(self._index_path) else {}

    def _load_data(self, name: str) -> Any:
        path = self._data_path(name)
        if not _intact(path):
            raise FileNotFoundError(path)
        return super()._load_data(name)

    @contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[BinaryIO]:
        with super()._open_for_write(filepath) as file:
            content = io.BytesIO()
            yield content
            file.write(content.getvalue() + _checksum(content.getvalue()))


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _intact(path: str) -> bool:
    try:
        content = Path(path).read_bytes()
    except OSError:
        return False
    size = hashlib.sha256().digest_size
    return content[-size:] == _checksum(content[:-size])
