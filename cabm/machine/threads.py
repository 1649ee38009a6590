"""Work on several threads, each with its share of PyTorch's threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


def in_order(work: Callable[[int], T], count: int, *, threads: int | None = None) -> Iterator[T]:
    """Yield ``work(0)``, ``work(1)``, ... ``work(count - 1)`` in order; several run at the same time.

    PyTorch's operators release the interpreter's lock, so the threads do run in parallel. Later calls start
    while the caller handles a result. Calls that have not started are dropped when the caller stops or a
    call fails.

    Args:
        work: called from several threads.
        count: number of calls.
        threads: threads in all; default: as many as PyTorch uses. Each call gets one, or more if there are
            fewer calls than threads.
    """
    threads = threads or torch.get_num_threads()
    workers = max(1, min(threads, count))
    if workers == 1:
        for index in range(count):
            with torch_threads(threads):
                result = work(index)
            yield result
        return
    with torch_threads(None):  # restores the number, which some libraries share among threads
        pool = ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(threads // workers,)
        )
        try:
            yield from pool.map(work, range(count))
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Set PyTorch's number of threads inside the block and restore it afterwards; None sets nothing."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
