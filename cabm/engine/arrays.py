"""NumPy arrays that compiled code reads and writes by address."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LINE = 64
"""Bytes of a cache line, and of the widest register: a load across two lines takes as long as two."""


def empty(shape: Sequence[int], dtype: type[np.generic] = np.float32) -> np.ndarray:
    """Return new memory of any content that starts with a cache line."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = np.empty(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def aligned(numbers: np.ndarray) -> np.ndarray:
    """Return numbers contiguous in memory that starts with a cache line; copy them if they are not."""
    if numbers.flags.c_contiguous and numbers.ctypes.data % LINE == 0:
        return numbers
    copy = empty(numbers.shape, numbers.dtype.type)
    copy[...] = numbers
    return copy


def groups_of(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    """Split an array along its first axis into parts of ``size``; the last one may be smaller."""
    return [numbers[first : first + size] for first in range(0, len(numbers), size)]


def with_margin(numbers: np.ndarray, *margins: int) -> np.ndarray:
    """Append zeros to an array: ``margins`` of them along its first axes."""
    widths = [*margins, *[0] * (numbers.ndim - len(margins))]
    return np.pad(numbers, [(0, width) for width in widths]) if any(widths) else numbers
