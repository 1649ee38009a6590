"""PyTorch's threads: how many, and pieces of work on several, each with its share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


def in_order(work: Callable[[int], T], count: int, *, threads: int | None = None) -> Iterator[T]:
    """Yield ``work(0)``, ``work(1)``, ... ``work(count - 1)``; several run at once, on one thread each.

    PyTorch's operators release the interpreter, so that threads do run at once. Those that follow begin
    while the caller handles a result; what has not begun is dropped when the caller stops, or work fails.

    Args:
        work: called from several threads.
        count: how many pieces.
        threads: how many run at once; default: as many as PyTorch uses. Fewer pieces than that share them.
    """
    threads = threads or torch.get_num_threads()
    workers = max(1, min(threads, count))
    if workers == 1:
        for index in range(count):
            with torch_threads(threads):
                result = work(index)
            yield result
        return
    with torch_threads(None):  # some libraries have one number for all threads
        pool = ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(threads // workers,)
        )
        try:
            yield from pool.map(work, range(count))
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Let PyTorch use that many threads in the block; None leaves it as it is."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
