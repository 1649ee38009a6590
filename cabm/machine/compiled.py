"""Loops compiled by numba, and what happens where numba fails."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

Loop = Callable[..., None]
T = TypeVar("T")
P = ParamSpec("P")

log = logging.getLogger(__name__)


def none_if_numba_fails(prepare: Callable[P, T | None]) -> Callable[P, T | None]:
    """Decorate a function that compiles and tries loops: return None, with a warning, if it raises.

    The caller then takes a slower path. A numba that does not fit the installed NumPy or LLVM fails in
    many ways, at import or later. The process warns once, whatever fails first.
    """

    @functools.wraps(prepare)
    def attempt(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return prepare(*args, **kwargs)
        except Exception:
            _warn_once()
            return None

    return attempt


@functools.cache
def _warn_once() -> None:
    """Log the exception that is being handled; cached, so only the first call does."""
    error = sys.exception()
    reason = (str(error).strip() or "no message").splitlines()[0]
    log.warning("numba fails (%s: %s); slower code runs instead", type(error).__name__, reason)


def jit(loop: Loop, *, cache: bool = True, **options: object) -> Loop:
    """Return a loop that numba compiles at its first call and runs without the interpreter's lock.

    Args:
        loop: Python code in numba's subset.
        cache: keep the compiled code on disk for other processes, see `cabm.machine.code_cache`. The key is
            the loop and the machine, not the options.
        options: of ``numba.njit``.

    Raises:
        RuntimeError: ``NUMBA_DISABLE_JIT`` is set; uncompiled, the loop would take hours.
    """
    import numba

    if numba.config.DISABLE_JIT:
        raise RuntimeError("NUMBA_DISABLE_JIT is set")
    compiled = numba.njit(nogil=True, **options)(loop)
    if cache:
        _keep(compiled)
    return compiled


def _keep(compiled: Any) -> None:
    """Let numba keep a loop's code in the user's cache folder."""
    try:
        from cabm.machine.code_cache import CompiledCode

        compiled._cache = CompiledCode(compiled.py_func)
    except RuntimeError:  # no folder can be written: NUMBA_CACHE_DIR, or the user's
        log.info("compiling for this CPU at every start: no folder for the code (set NUMBA_CACHE_DIR)")
    except (ImportError, AttributeError, TypeError):  # a numba whose cache has another structure
        compiled.enable_caching()


def compiles_for_this_cpu() -> bool:
    """Return whether numba may use all instructions of this CPU: no environment variable restricts it."""
    import numba

    return {numba.config.CPU_NAME, numba.config.CPU_FEATURES} <= {None, "", "host"}
