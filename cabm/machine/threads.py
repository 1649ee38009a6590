"""Work on several threads, each with its share of the threads of PyTorch, if that is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import TypeVar

from cabm.machine.cpu import available_cores

T = TypeVar("T")

_LIMIT: ContextVar[int | None] = ContextVar("threads", default=None)


def thread_count() -> int:
    """Return how many threads to use.

    The number of the `limited_threads` around the call; else PyTorch's, if that is imported; else
    ``OMP_NUM_THREADS``, if it is a whole number above 0; else the number of cores that this process may
    use.
    """
    limit, torch = _LIMIT.get(), _torch()
    if limit is not None:
        return limit
    if torch is not None:
        return torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS", "").strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return available_cores()


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Set `thread_count` inside the block, and PyTorch's number of threads if it is imported.

    Both are restored afterwards. None sets nothing.
    """
    limit, torch = _LIMIT.get(), _torch()
    of_torch = None if torch is None else torch.get_num_threads()
    if threads is not None:
        _set(threads)
    try:
        yield
    finally:
        if threads is not None:
            _LIMIT.set(limit)
        if torch is not None:
            torch.set_num_threads(of_torch)


def in_order(work: Callable[[int], T], count: int, *, threads: int | None = None) -> Iterator[T]:
    """Yield ``work(0)``, ``work(1)``, ... ``work(count - 1)`` in order; several run at the same time.

    Compiled loops and the operations of NumPy and PyTorch release the interpreter's lock, so the threads do
    run in parallel. Later calls start while the caller handles a result. Calls that have not started are
    dropped when the caller stops or a call fails.

    Args:
        work: called from several threads.
        count: number of calls.
        threads: threads in all; default: `thread_count`. Each call gets one, or more if there are fewer
            calls than threads.
    """
    threads = threads or thread_count()
    workers = max(1, min(threads, count))
    if workers == 1:
        for index in range(count):
            with limited_threads(threads):
                result = work(index)
            yield result
        return
    with limited_threads(None):  # restores PyTorch's number, which some libraries share among threads
        pool = ThreadPoolExecutor(workers, initializer=_set, initargs=(threads // workers,))
        try:
            yield from pool.map(work, range(count))
        finally:
            pool.shutdown(cancel_futures=True)


def _set(threads: int) -> None:
    """Set the number of threads of this thread."""
    _LIMIT.set(threads)
    torch = _torch()
    if torch is not None:
        torch.set_num_threads(threads)


def _torch() -> ModuleType | None:
    """Return PyTorch if it is imported; None as long as another thread is importing it."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "get_num_threads") else None
