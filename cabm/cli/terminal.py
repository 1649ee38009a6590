"""What commands on many files print, and how they stop."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, Protocol

import typer

from cabm.errors import InputError, debugging, printable


class Failed(Protocol):
    """A file that failed: why, in one line, and the traceback of an unexpected error."""

    reason: str
    traceback: str


def echo(text: str, err: bool = False) -> None:
    """Print lines without breaking a progress bar; file names may hold bytes that are not UTF-8."""
    from tqdm import tqdm

    lines = map(printable, text.split("\n"))
    tqdm.write("\n".join(lines), file=sys.stderr if err else sys.stdout)


class _OneLine(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        echo(f"cabm: {record.getMessage()}", err=True)


@contextmanager
def compiling_shown(show: bool) -> Iterator[None]:
    """Print a line when loops are compiled, which takes seconds, if ``show``; also one if it fails."""
    logger, handler = logging.getLogger("cabm.machine"), _OneLine()
    before = logger.level
    logger.setLevel(logging.INFO if show else logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM stop the job as Ctrl-C does, so that it leaves no partial file."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupted(left: str = "") -> NoReturn:
    """Say how to resume, and exit with the code of an interrupt."""
    echo(f"cabm: interrupted{left}; run the same command to resume", err=True)
    raise typer.Exit(130)


def fail(failures: Sequence[Failed], num_files: int, *, verbose: bool = False) -> NoReturn:
    """Print what failed and exit with code 1; with tracebacks if ``verbose`` or debugging.

    Raises:
        InputError: the reason, if there is a single file.
    """
    for failure in failures:
        if failure.traceback and (verbose or debugging()):
            echo(failure.traceback.rstrip(), err=True)
        if num_files == 1:
            raise InputError(failure.reason)
        echo(f"cabm: {failure.reason}", err=True)
    echo(f"cabm: {len(failures)} of {num_files} images failed", err=True)
    raise typer.Exit(1)
