"""What jobs on many files print, and how they stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from cabm.errors import InputError


def echo(text: str, err: bool = False) -> None:
    """Print around a progress bar that may be on the screen."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr if err else sys.stdout)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM stop the job as Ctrl-C does, so that no half file is left."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fail(reasons: list[str], num_files: int) -> NoReturn:
    """List what failed, and end with exit code 1.

    Raises:
        InputError: of the only file.
    """
    if num_files == 1:
        raise InputError(reasons[0])
    for reason in reasons:
        echo(f"cabm: {reason}", err=True)
    echo(f"cabm: {len(reasons)} of {num_files} images failed", err=True)
    raise typer.Exit(1)
