"""The network's numbers as pixels: rounded and clipped."""

from __future__ import annotations

from functools import cache

import numpy as np

from cabm.engine import elementwise_loops
from cabm.machine.compiled import Loop, jit, none_if_numba_fails


def to_pixels(values: np.ndarray, out: np.ndarray) -> None:
    """Write float32 values, rounded half to even and clipped to 0..255, to uint8 of the same shape.

    Args:
        values, out: contiguous.
    """
    loop = compiled()
    if loop is None:
        out[...] = np.rint(values).clip(0, 255)
    else:
        _run(loop, values.reshape(-1), out.reshape(-1))


@cache
@none_if_numba_fails
def compiled() -> Loop | None:
    """Return the compiled loop, or None if numba fails; NumPy takes several times as long.

    Raises:
        ArithmeticError: it computes wrong pixels.
    """
    loop = jit(elementwise_loops.encode)
    out = np.zeros(8, np.uint8)
    _run(loop, np.array([-7, -0.4, 0.5, 1.5, 2.5, 254.4, 255.4, 1e9], np.float32), out)
    if not np.array_equal(out, [0, 0, 0, 2, 2, 254, 255, 255]):
        raise ArithmeticError("the compiled rounding computes wrong pixels")
    return loop


def _run(loop: Loop, values: np.ndarray, out: np.ndarray) -> None:
    """Encode values as codes 0..255 whose step is 1."""
    one = np.float32(1)
    loop(values, one, one, np.float32(0), np.float32(255), np.int32(0), out)
