"""Loops that numba compiles, where it is installed (extra ``fast``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

Loop = Callable[..., None]
T = TypeVar("T")


def where_it_works(prepare: Callable[[], T | None]) -> Callable[[], T | None]:
    """Let what compiles loops, and tries them, return None where it fails.

    A numba that is missing, or does not go with this numpy or LLVM, fails in many ways.
    """

    @wraps(prepare)
    def attempt() -> T | None:
        try:
            return prepare()
        except Exception:
            return None

    return attempt


def jit(loop: Loop, *, cache: bool = True, **options: object) -> Loop:
    """Let numba compile a loop at its first call.

    Args:
        loop: runs without the interpreter's lock.
        cache: keep what was compiled for other processes; the key is the loop and the machine, not the
            options.
        options: of ``numba.njit``.

    Raises:
        Exception: numba is told not to compile (the loop would take hours), or as `where_it_works` says.
    """
    import numba

    if numba.config.DISABLE_JIT:
        raise RuntimeError("NUMBA_DISABLE_JIT is set")
    try:
        return numba.njit(nogil=True, cache=cache, **options)(loop)
    except RuntimeError:  # neither the package nor the home directory can hold the cache
        return numba.njit(nogil=True, **options)(loop)
