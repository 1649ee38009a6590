"""Loops compiled by numba, and what happens where numba fails."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import TypeVar

Loop = Callable[..., None]
T = TypeVar("T")

log = logging.getLogger(__name__)


def none_if_numba_fails(prepare: Callable[[], T | None]) -> Callable[[], T | None]:
    """Decorate a function that compiles and tries loops: return None, with a warning, if it raises.

    The caller then takes its PyTorch path. A numba that does not fit the installed NumPy or LLVM fails in
    many ways, at import or later. The process warns once, whatever fails first.
    """

    @functools.wraps(prepare)
    def attempt() -> T | None:
        try:
            return prepare()
        except Exception:
            _warn_once()
            return None

    return attempt


@functools.cache
def _warn_once() -> None:
    """Log the exception that is being handled; cached, so only the first call does."""
    error = sys.exception()
    reason = (str(error).strip() or "no message").splitlines()[0]
    log.warning("numba fails (%s: %s); slower PyTorch code runs instead", type(error).__name__, reason)


def jit(loop: Loop, *, cache: bool = True, **options: object) -> Loop:
    """Return a loop that numba compiles at its first call and runs without the interpreter's lock.

    Args:
        loop: Python code in numba's subset.
        cache: keep the compiled code on disk for other processes. The key is the loop and the machine, not
            the options.
        options: of ``numba.njit``.

    Raises:
        RuntimeError: ``NUMBA_DISABLE_JIT`` is set; uncompiled, the loop would take hours.
    """
    import numba

    if numba.config.DISABLE_JIT:
        raise RuntimeError("NUMBA_DISABLE_JIT is set")
    try:
        return numba.njit(nogil=True, cache=cache, **options)(loop)
    except RuntimeError:  # neither the package nor the home directory can hold the cache
        return numba.njit(nogil=True, **options)(loop)


def compiles_for_this_cpu() -> bool:
    """Return whether numba may use all instructions of this CPU: no environment variable restricts it."""
    import numba

    return {numba.config.CPU_NAME, numba.config.CPU_FEATURES} <= {None, "", "host"}
