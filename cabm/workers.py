"""Pieces of work on several threads, each with its share of PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
    before = torch.get_num_threads()
    threads = threads or before
    workers = max(1, min(threads, count))
    if workers == 1:
        for index in range(count):
            torch.set_num_threads(threads)
            try:
                result = work(index)
            finally:
                torch.set_num_threads(before)
            yield result
        return
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
    try:
        yield from pool.map(work, range(count))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # some libraries have one number for all threads
