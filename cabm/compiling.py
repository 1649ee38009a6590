"""Loops that numba compiles, where it is installed (extra ``fast``)."""

from __future__ import annotations

from collections.abc import Callable

Loop = Callable[..., None]


def jit(loop: Loop, *, cache: bool = True, **options: object) -> Loop:
    """Let numba compile a loop at its first call.

    Args:
        loop: runs without the interpreter's lock.
        cache: keep what was compiled for other processes; the key is the loop and the machine, not the
            options.
        options: of ``numba.njit``.

    Raises:
        Exception: numba is not installed, is told not to compile (the loop would take hours), or does not
            go with this numpy or LLVM: it fails in many ways.
    """
    import numba

    if numba.config.DISABLE_JIT:
        raise RuntimeError("NUMBA_DISABLE_JIT is set")
    try:
        return numba.njit(nogil=True, cache=cache, **options)(loop)
    except RuntimeError:  # neither the package nor the home directory can hold the cache
        return numba.njit(nogil=True, **options)(loop)
