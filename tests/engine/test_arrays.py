from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cabm.engine.arrays import LINE, aligned, empty, groups_of, with_margin
from cabm.engine.float_rows import pixels_together
from cabm.engine.reference import convolve, leaky, pixel_shuffle


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.float32])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 7)])
def test_memory_starts_with_a_cache_line(shape: tuple[int, ...], dtype: type) -> None:
    memory = empty(shape, dtype)
    assert memory.shape == shape and memory.dtype == dtype
    assert memory.ctypes.data % LINE == 0 and memory.flags.c_contiguous and memory.flags.writeable


def test_what_is_aligned_is_not_copied() -> None:
    numbers = empty((4, 6))
    numbers[:] = np.arange(24).reshape(4, 6)
    assert aligned(numbers) is numbers
    for other in (numbers[1:], numbers.T, numbers[:, ::2]):
        found = aligned(other)
        assert np.array_equal(found, other) and found.ctypes.data % LINE == 0 and found.flags.c_contiguous


def test_groups_and_margins() -> None:
    numbers = np.arange(1, 8)
    assert [group.tolist() for group in groups_of(numbers, 3)] == [[1, 2, 3], [4, 5, 6], [7]]
    assert with_margin(np.ones((2, 1, 2)), 1, 2).tolist() == [
        [[1, 1], [0, 0], [0, 0]],
        [[1, 1], [0, 0], [0, 0]],
        [[0, 0], [0, 0], [0, 0]],
    ]


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_reference_is_pytorchs(size: int) -> None:
    x, weight = torch.randn(1, 6, 4, 7), torch.randn(8, 6, size, size)
    wanted = F.conv2d(x.double(), weight.double(), padding=size // 2)
    found = convolve(x[0].permute(1, 2, 0).numpy(), weight.numpy())
    np.testing.assert_allclose(found, wanted[0].permute(1, 2, 0), rtol=1e-12, atol=1e-12)
    shuffled = F.leaky_relu(F.pixel_shuffle(wanted, 2), 0.25)[0].permute(1, 2, 0)
    np.testing.assert_allclose(leaky(pixel_shuffle(found, 2), 0.25), shuffled, rtol=1e-12, atol=1e-12)


def test_pixels_lie_together_in_arrays_and_tensors() -> None:
    numbers = torch.arange(2 * 9 * 4).view(18, 4)
    wanted = numbers.view(2, 9, 4).transpose(0, 1).flatten(0, 1)
    assert torch.equal(pixels_together(numbers, 3), wanted)
    assert np.array_equal(pixels_together(numbers.numpy(), 3), wanted)
