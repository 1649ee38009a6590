from __future__ import annotations

import numpy as np
import torch

from cabm.engine.bfloat16 import from_bfloat16, to_bfloat16


def test_rounding_is_that_of_pytorch() -> None:
    """All upper halves of finite numbers, with lower halves below, at and above a tie; infinities, too."""
    upper = np.arange(2**16, dtype=np.uint32)
    upper = upper[(upper & 0x7F80) != 0x7F80]
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = np.append(
        (upper[:, None] << 16 | lower).reshape(-1), np.array([0x7F800000, 0xFF800000], np.uint32)
    )
    values = bits.view(np.float32)
    rounded = torch.from_numpy(values).bfloat16()
    found = to_bfloat16(values)
    assert np.array_equal(found.view(np.int16), rounded.view(torch.int16).numpy())
    assert np.array_equal(from_bfloat16(found), rounded.float().numpy())


def test_shapes_and_orders_are_kept() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    assert np.array_equal(from_bfloat16(to_bfloat16(values)), values)
