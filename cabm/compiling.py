"""Loops that numba compiles, where it is installed (extra ``fast``)."""

from __future__ import annotations

from collections.abc import Callable

Loop = Callable[..., None]


def jit(loop: Loop, **options: object) -> Loop:
    """Let numba compile a loop at its first call; what it compiled is kept for other processes.

    Args:
        loop: runs without the interpreter's lock.
        options: of ``numba.njit``.

    Raises:
        Exception: numba is not installed, or does not go with this numpy or LLVM: it fails in many ways.
    """
    import numba

    try:
        return numba.njit(nogil=True, cache=True, **options)(loop)
    except RuntimeError:  # neither the package nor the home directory can hold the cache
        return numba.njit(nogil=True, **options)(loop)
