"""Contenders in processes of their own: threads and memory of one cost the others nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from cabm.machine.memory import peak_memory

Run = Callable[[], object]


class OwnProcess:
    """A new process that runs functions on demand and sleeps in between.

    Args:
        build: called in the process; returns what to run by name. It is sent there by pickle.

    Attributes:
        runs: functions by name that each run the one of that name there, and return when it has ended.
        memory_before: the largest resident memory until the functions were built, in bytes.

    Raises:
        RuntimeError: the process failed or ended; its traceback is on the standard error.
    """

    def __init__(self, build: Callable[[], Mapping[str, Run]]) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build), daemon=True)
        self._process.start()
        theirs.close()
        names, self.memory_before = self._answer()
        self.runs: dict[str, Run] = {name: partial(self._ask, name) for name in names}

    def peak_memory(self) -> float:
        """Return the largest resident memory of the process until now, in bytes."""
        return self._ask(None)

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()
        self._pipe.close()

    def _ask(self, name: str | None) -> Any:
        self._pipe.send(name)
        return self._answer()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise RuntimeError(f"a contender's process ended with code {self._process.exitcode}") from None


def _serve(pipe: Connection, build: Callable[[], Mapping[str, Run]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C, the process that started this one ends it
    runs = build()
    pipe.send((list(runs), peak_memory()))
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        if name is None:
            pipe.send(peak_memory())
        else:
            runs[name]()
            pipe.send(None)
