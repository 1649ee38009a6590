"""`cabm upscale -`: one image from standard input, or to standard output."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cabm.errors import InputError
from cabm.imaging.formats import OUTPUT_FORMATS

if TYPE_CHECKING:
    from cabm.upscaling.request import UpscaleRequest

PIPE = "-"
_STDOUT = 1
_BROKEN_PIPE = 141  # what a shell reports of a program that SIGPIPE ended


@dataclass(frozen=True)
class Piped:
    """A request whose image passes through a pipe; made by `piped`.

    Attributes:
        request: of files in a folder of its own instead of ``-``.
        names: what messages call these files.
    """

    request: UpscaleRequest
    names: tuple[tuple[str, str], ...] = ()

    def named(self, text: str) -> str:
        """Return a message with the names of the pipes."""
        for path, name in self.names:
            text = text.replace(path, name)
        return text


@contextmanager
def piped(request: UpscaleRequest) -> Iterator[Piped]:
    """Read ``-`` from standard input for the block, and write ``-`` to standard output after it.

    An image from standard input goes to standard output unless another output is named. In the block all
    that is printed goes to standard error. Nothing is written to standard output if the block raises.

    Raises:
        InputError: other inputs beside ``-``; or standard input is empty, or one of the two is a terminal.
    """
    reads = PIPE in request.inputs
    writes = request.output == PIPE or (reads and request.output is None)
    if not (reads or writes):
        yield Piped(request)
        return
    if len(request.inputs) > 1 or (writes and Path(request.inputs[0]).is_dir()):
        raise InputError(f"{PIPE}: a pipe takes one image; give a folder (-o FOLDER) for several")
    if reads and sys.stdin is None:
        raise InputError("standard input: is closed; pipe an image into it, or name a file")
    if reads and sys.stdin.isatty():
        raise InputError("standard input: is a terminal; pipe an image into it, or name a file")
    if writes and sys.stdout is None:
        raise InputError("standard output: is closed; redirect it (> FILE), or name a file (-o FILE)")
    if writes and sys.stdout.isatty():
        raise InputError("standard output: is a terminal; redirect it (> FILE), or name a file (-o FILE)")
    with tempfile.TemporaryDirectory(prefix="cabm-") as folder:
        source = Path(folder, "stdin")
        result = Path(folder, f"stdout{OUTPUT_FORMATS[request.file_format or 'png'].suffix}")
        if reads:
            _read(source)
            request = replace(request, inputs=(str(source),))
        if writes:
            request = replace(request, output=str(result))
        piped = Piped(request, ((str(source), "standard input"), (str(result), "standard output")))
        try:
            if writes:
                with _reserved_stdout() as stdout:
                    yield piped
                    _write(result, stdout)
            else:
                yield piped
        except InputError as error:
            raise InputError(piped.named(str(error))) from None


def _read(path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    if not path.stat().st_size:
        raise InputError("standard input: is empty; pipe an image into it")


@contextmanager
def _reserved_stdout() -> Iterator[int]:
    """Send to standard error what this process and its libraries print; yield the true standard output."""
    sys.stdout.flush()
    stdout = os.dup(_STDOUT)
    os.dup2(2, _STDOUT)
    try:
        yield stdout
    finally:
        sys.stdout.flush()
        os.dup2(stdout, _STDOUT)
        os.close(stdout)


def _write(path: Path, stdout: int) -> None:
    """Copy a file to standard output; end quietly if nobody reads it to the end, as other programs do."""
    try:
        with path.open("rb") as file, open(stdout, "wb", closefd=False) as out:
            shutil.copyfileobj(file, out)
    except BrokenPipeError:
        raise typer.Exit(_BROKEN_PIPE) from None
