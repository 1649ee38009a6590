"""Errors that a user can act on."""

from __future__ import annotations

import os
import reprlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

_MAX_SHOWN = 80  # characters of a key or a value in a message
_MAX_BEGINNING, _MAX_END = 1200, 300  # characters of a message

PLOTS = ("matplotlib",)
PIPELINE = (*PLOTS, "jinja2", "kornia", "scipy", "skimage", "yaml")
"""Modules that the stages and the report cannot do without."""
EXTRAS = {
    "plots": PLOTS,
    "pipeline": (*PIPELINE, "dvc", "mlflow", "pandas", "sklearn"),
    "heic": ("pillow_heif",),
    "onnx": ("onnx", "onnxruntime"),
    "ray": ("pyarrow", "ray"),
    "web": ("fastapi", "gradio", "uvicorn"),
    "bench": ("ncnn", "nncf", "openvino", "pnnx"),
}
"""The modules of each extra that the package uses. A module is looked up in the first extra that has it."""


class InputError(ValueError):
    """A file, a setting or an option that the user gave is wrong.

    The message is one line: what was found, where, and what to do about it. The command line and the
    stages print it without a traceback and exit non-zero. Characters that do not print are escaped, so that
    names and contents of files can neither break the line nor control the terminal. The middle of a long
    message is left out, because libraries quote the file they refuse.
    """

    def __init__(self, message: str) -> None:
        line = printable(message)
        if len(line) > _MAX_BEGINNING + _MAX_END:
            line = f"{line[:_MAX_BEGINNING]} ... {line[-_MAX_END:]}"
        super().__init__(line)


class TrainingDiverged(RuntimeError):
    """A loss, a weight or a clip value became unusable; the message says which, and at which step."""


class PeerLost(RuntimeError):
    """Another process of the same training ended, or did not answer in time."""


class WorkerFailed(RuntimeError):
    """A training on several processes ended; the message is from the process that failed first."""


def printable(text: str) -> str:
    """Return a text with escapes in place of characters that do not print, such as bytes of file names."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def require(purpose: str, *modules: str) -> None:
    """Check that optional dependencies are installed, before anything is computed.

    Args:
        purpose: the command, option or file that needs them; begins the message.
        modules: modules of one extra.

    Raises:
        InputError: some are missing; the message says which extra to install.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        extra = next(extra for extra, provided in EXTRAS.items() if set(modules) <= set(provided))
        raise InputError(f'{purpose}: {", ".join(missing)} not installed; pip install "cabm[{extra}]"')


def missing_extra(error: BaseException | None) -> str | None:
    """Return the extra that installs the module which an import did not find, None for other errors."""
    name = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    module = name.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if module in modules), None)


def error_line(error: BaseException, source: str | Path | None = None) -> str:
    """Return an error as one line: where it occurred, and what went wrong.

    Args:
        error: the error. Those of this module are lines already.
        source: the file at work, for errors that do not name a file.
    """
    if isinstance(error, (InputError, TrainingDiverged, PeerLost, WorkerFailed)):
        return str(error)
    where: object = source
    extra = missing_extra(error)
    if extra is not None:
        text = f'{error}; pip install "cabm[{extra}]"'
    elif isinstance(error, OSError):
        where, text = error.filename or source, str(error.strerror or error)
    elif isinstance(error, MemoryError):
        text = f"not enough memory ({str(error)[:200]})" if str(error) else "not enough memory"
    else:
        text = f"{type(error).__name__}: {error}"
    line = " ".join(text.split())[:_MAX_BEGINNING]
    return printable(f"{where}: {line}" if where else line)


def debugging() -> bool:
    """Return whether errors are printed with their traceback: CABM_DEBUG=1 in the environment."""
    return os.environ.get("CABM_DEBUG") == "1"


def describe(error: ValidationError, content: Any = None) -> str:
    """Return a validation error as one line: the places, what is wrong there, and the values found.

    Args:
        error: raised by a pydantic model.
        content: the validated content; if given, places are named by its keys only, without the names of
            the alternatives that pydantic tried.
    """
    problems = []
    for problem in error.errors(include_url=False):
        where = ".".join(key[:_MAX_SHOWN] for key in _keys(problem["loc"], content)) or "the file"
        problems.append(f"{where}: {problem['msg'][:200]} (found {shown(problem['input'])!r})")
        if len(problems) == 5:
            break
    return "; ".join(problems)


def shown(value: Any) -> str:
    """Return the beginning of a value as text, in time and memory that do not depend on its size.

    A few lines of YAML can describe a structure of any size, and Python refuses to convert very long
    integers to text.
    """
    if isinstance(value, str):
        return value[:_MAX_SHOWN]
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, (dict, list, tuple)):
        return _Brief().repr(value)[:_MAX_SHOWN]
    return str(value)[:_MAX_SHOWN]


class _Brief(reprlib.Repr):
    """Short texts of containers by the standard library, with long integers as in `shown`."""

    def repr_int(self, x: int, level: int) -> str:
        return shown(x)


def _keys(places: tuple[int | str, ...], content: Any) -> list[str]:
    if content is None:
        return [str(place) for place in places]
    keys = []
    for index, place in enumerate(places):
        sequence = isinstance(content, (list, tuple)) and isinstance(place, int)
        sequence = sequence and place < len(content)  # a tuple may be too short
        inside = sequence or (isinstance(content, dict) and place in content)
        if inside:
            content = content[place]
        if inside or (index == len(places) - 1 and isinstance(content, (dict, list))):
            keys.append(str(place))  # the last one may be a key that is missing
    return keys
