"""bfloat16, the upper half of a float32, which NumPy lacks; as uint16 here."""

from __future__ import annotations

import numpy as np


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bfloat16, ties to even, as PyTorch does; there must be no NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + (np.uint32(0x7FFF) + odd)) >> np.uint32(16)).astype(np.uint16)


def from_bfloat16(numbers: np.ndarray) -> np.ndarray:
    """Return bfloat16 as float32."""
    return (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)
