"""Put off what PyTorch imports at its start and a short command never uses."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any

from cabm.machine.gpu import may_have_gpu

TESTED = "2.13."
"""Versions of PyTorch that the engine and the simulated model run on without `UNUSED`."""

UNUSED = (
    "torch._meta_registrations",  # without it, torch.Generator() fails
    "torch.ao",
    "torch.distributed._meta_registrations",
    "torch.distributions",
    "torch.export",
    "torch.masked",
    "torch.nn.intrinsic",
    "torch.nn.qat",
    "torch.nn.quantizable",
    "torch.nn.quantized",
    "torch.quantization",
)
"""Modules that PyTorch imports at its start, in a third of its time, and that upscaling does not use."""


@contextmanager
def torch_in_part() -> Iterator[None]:
    """Import PyTorch, if it is imported inside the block, without `UNUSED`.

    All of it is imported where the version is not `TESTED`, or where there may be a GPU: the tests ran on
    CPUs only.
    """
    late = version("torch").startswith(TESTED) and not may_have_gpu()
    with imported_late(UNUSED if late else ()):
        yield


@contextmanager
def imported_late(names: Collection[str]) -> Iterator[None]:
    """Put off modules that are first imported inside the block until something in them is used.

    `importlib.util.LazyLoader` does not do this for PyTorch: ``from torch import x`` loads ``x`` at once.

    Args:
        names: full names. What a module does when it is imported, such as registering functions, is put
            off, too; if nobody looks into the module, for ever.
    """
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder:
    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in self._names else None
        if spec is None or spec.loader is None:
            return None
        # without the package's path, so that an import of a submodule asks for it, which loads the package
        return ModuleSpec(name, _Loader(spec), origin=spec.origin)


class _Loader:
    def __init__(self, spec: ModuleSpec) -> None:
        self._spec = spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _LateModule(spec.name)

    def exec_module(self, module: _LateModule) -> None:
        """Execute nothing yet."""
        module.__file__ = self._spec.origin  # asked of all modules when warnings are written
        module._late_spec = self._spec


class _LateModule(ModuleType):
    """A module that is executed when an attribute is missing, and then is an ordinary module."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._late_spec: ModuleSpec | None = None
        self._late_lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        self._execute()
        if type(self) is _LateModule:  # this thread is creating or executing it
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self, name)

    def _execute(self) -> None:
        with self.__dict__["_late_lock"]:
            spec = self.__dict__["_late_spec"]
            if spec is not None:
                self._late_spec = None  # what it imports may look into it
                self.__dict__.update(module_from_spec(spec).__dict__)
                spec.loader.exec_module(self)
                self.__class__ = ModuleType
