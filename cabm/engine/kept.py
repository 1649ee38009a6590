"""Compiled models kept on disk, so that the next process upscales without PyTorch.

What is kept are packed weights and clip values: all that an `IntegerModel` consists of. They fit one CPU
and one version of this package, so both are part of the key.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import cabm
from cabm.engine import byte_rows, float_rows, float_winograd, pixel_conv, tap_sums
from cabm.engine.blocks import BlockParts
from cabm.engine.float_rows import PackedRows, Rows
from cabm.engine.float_tail import FloatTail
from cabm.engine.float_winograd import WinogradConv
from cabm.engine.forms import choose_form
from cabm.engine.fused import CompiledWeights, FloatWeights, Kernel, compiled
from cabm.engine.grid import Storage
from cabm.engine.integer import IntegerModel
from cabm.engine.kept_format import CannotBeKept, Writer, read
from cabm.engine.packing import PackedConv, Quantizer
from cabm.engine.pixel_conv import PixelConv
from cabm.engine.programs.carn import CarnBlock, CarnProgram
from cabm.engine.programs.idn import DistillationParts, IdnProgram
from cabm.engine.programs.residual import ResidualProgram
from cabm.engine.tap_sums import TapConv
from cabm.files import atomic_write
from cabm.machine.compiled import Loop
from cabm.machine.cpu import cpu_multiplies_bfloat16, known_features
from cabm.machine.folders import cache_folder
from cabm.models.facts import ModelFacts, QuantizedLayer
from cabm.quant.kinds import Precision

log = logging.getLogger(__name__)

MAX_MODELS = 16
"""Models that are kept, of up to some 10 MB each; those that were used longest ago go first."""

LOOPS: dict[type, Callable[[int], Loop | None]] = {
    PixelConv: pixel_conv.compiled,
    TapConv: tap_sums.compiled,
    WinogradConv: float_winograd.compiled,
}
"""Classes whose loop runs on registers of so many ``lanes``, and what compiles it."""

KEPT_CLASSES: tuple[type, ...] = (
    BlockParts,
    CarnBlock,
    CarnProgram,
    CompiledWeights,
    DistillationParts,
    FloatTail,
    FloatWeights,
    IdnProgram,
    ModelFacts,
    PackedConv,
    PackedRows,
    Precision,
    QuantizedLayer,
    Quantizer,
    ResidualProgram,
    *LOOPS,
)
"""Classes of what is kept, besides plain values and arrays."""


def folder() -> Path:
    """Return where compiled models are kept."""
    return cache_folder() / "models"


def key_of(model: dict[str, Any]) -> str:
    """Return the key of a model on this CPU, with this version of the package.

    Args:
        model: JSON values that identify the model, its weights and its options.
    """
    machine = [_forms(), sorted(known_features().items()), cpu_multiplies_bfloat16()]
    text = json.dumps([model, machine, _version()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def find(key: str) -> IntegerModel | None:
    """Return a kept model; None if there is none, or this process cannot run it."""
    path = folder() / key
    try:
        model = read_model(path)
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file, or a numba that no longer works
        log.info("the compiled model %s cannot be used (%s)", path, error)
        return None
    with suppress(OSError):  # a folder that can be read only
        os.utime(path)  # it was used
    return model


def keep(key: str, model: IntegerModel) -> bool:
    """Keep a model. A full disk or a folder that cannot be written does not matter.

    Returns:
        Whether it is kept: a model that needs PyTorch on this CPU is not.
    """
    try:
        written = write_model(folder() / key, model)
    except OSError as error:
        log.info("compiled models cannot be kept in %s (%s)", folder(), error)
        return False
    if written:
        _forget()
    return written


def write_model(path: Path, model: IntegerModel) -> bool:
    """Write a model to a file; return False, and write nothing, if it needs PyTorch on this CPU."""
    special = {Kernel: _kernel_fields, Rows: lambda rows: {"packed": rows.packed}, Storage: _storage_fields}
    try:
        content = Writer(KEPT_CLASSES, special).content({"program": model.program, "facts": model.facts})
    except CannotBeKept:
        return False
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return True


def read_model(path: Path) -> IntegerModel:
    """Return a model from a file of `write_model`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or its code does not run here.
    """
    return IntegerModel(**read(path, _readers()))


def _forget() -> None:
    """Delete the models that were used longest ago."""
    with suppress(OSError):  # another process may do the same
        by_age = sorted((path.stat().st_mtime, path) for path in folder().iterdir())
        for _, path in by_age[:-MAX_MODELS]:
            path.unlink(missing_ok=True)


def _forms() -> list[str | None]:
    """Return the names of the forms that this CPU runs; none if numba fails."""
    with suppress(ImportError, OSError):
        forms = [choose_form(wide=wide) for wide in (False, True)]
        return [None if form is None else form.name for form in forms]
    return []


@cache
def _version() -> list[Any]:
    """Return the version of the package, and what changes with its code: sizes and times of its files."""
    root = Path(cabm.__file__).parent
    folders = [root / name for name in ("checkpoints", "engine", "machine", "models", "quant")]
    files = [(path, path.stat()) for each in folders for path in sorted(each.rglob("*.py"))]
    return [cabm.__version__, [[path.name, found.st_size, found.st_mtime_ns] for path, found in files]]


def _kernel_fields(kernel: Kernel) -> dict[str, Any]:
    return {"form": kernel.form.name, "wide": kernel.form.name != choose_form().name}


def _kernel(form: str, wide: bool) -> Kernel:
    kernel = compiled(wide=wide)
    if kernel is None or kernel.form.name != form:
        raise ValueError(f"the form {form} does not run")
    return kernel


def _rows(packed: PackedRows) -> Rows:
    if not packed.lanes:
        loop, lanes = float_rows.compiled(), 0
    else:
        loop, lanes = byte_rows.compiled() or (None, 0)
    if loop is None or lanes != packed.lanes:
        raise ValueError("the compiled tail does not run")
    return Rows(loop, packed)


def _looped(kind: type, **fields: Any) -> Any:
    """Return an object of one of `LOOPS`; its loop is compiled here, before threads need it."""
    if LOOPS[kind](fields["lanes"]) is None:
        raise ValueError(f"the loop of {kind.__name__} does not run")
    return kind(**fields)


def _storage_fields(storage: Storage) -> dict[str, Any]:
    return {"name": storage.name}


def _readers() -> dict[str, Callable[..., Any]]:
    """Return what makes objects of kept fields, by class."""
    readers: dict[str, Callable[..., Any]] = {each.__name__: each for each in KEPT_CLASSES}
    readers |= {kind.__name__: partial(_looped, kind) for kind in LOOPS}
    return readers | {"Kernel": _kernel, "Rows": _rows, "Storage": lambda name: Storage[name]}
