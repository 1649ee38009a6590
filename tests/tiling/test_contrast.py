"""The contrast limit against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cabm.tiling.contrast import limit_contrast


def stripes(low: float, high: float) -> np.ndarray:
    tile = np.full((1, 3, 4, 6), low, np.float32)
    tile[..., ::2] = high
    return tile


def test_black_and_white_stripes_by_hand():
    limited = limit_contrast(stripes(0, 255), 63.75)
    assert limited.factor.item() == 2
    np.testing.assert_array_equal(limited.pixels, stripes(63.75, 191.25))
    np.testing.assert_array_equal(limited.restore(limited.pixels), stripes(0, 255))


def test_contrast_is_the_mean_of_the_channels():
    tile = stripes(50, 50)
    tile[:, 1] = stripes(0, 240)[:, 1]  # deviations 0, 120, 0
    limited = limit_contrast(tile, 20)
    assert limited.factor.item() == pytest.approx(2)
    np.testing.assert_array_equal(limited.pixels[:, 0], tile[:, 0])


def noise(seed: int) -> np.ndarray:
    """Five tiles of whole numbers in 0..255, of different contrast."""
    random = np.random.default_rng(seed)
    share = random.random((5, 1, 1, 1))
    return np.rint(128 + share * (random.random((5, 3, 7, 5)) * 255 - 128)).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 130))
def test_what_enters_is_within_the_limit_and_comes_back(seed, limit):
    tiles = noise(seed)
    before = tiles.copy()
    limited = limit_contrast(tiles, limit)
    assert {array.dtype for array in limited} == {np.dtype(np.float32)}
    deviation = limited.pixels.astype(np.float64).std(axis=(2, 3)).mean(axis=1)
    assert (deviation <= limit * (1 + 1e-5)).all()
    kept = limited.factor.ravel() == 1
    np.testing.assert_array_equal(limited.pixels[kept], tiles[kept])
    np.testing.assert_allclose(limited.restore(limited.pixels), tiles, rtol=0, atol=2e-3)
    bright = limited.pixels.repeat(2, axis=3) + np.float32(0.5)  # a network's result has another size
    added = limited.restore(bright) - tiles.repeat(2, axis=3)
    np.testing.assert_allclose(added, np.broadcast_to(0.5 * limited.factor, added.shape), rtol=0, atol=2e-3)
    np.testing.assert_array_equal(tiles, before)


def test_tensors_are_limited_as_arrays_are_and_restored_with_gradients():
    tiles = noise(7)
    array, tensor = limit_contrast(tiles, 20.0), limit_contrast(torch.from_numpy(tiles), 20.0)
    for ours, theirs in zip(array, tensor, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    result = tensor.pixels.requires_grad_()
    tensor.restore(result).sum().backward()
    np.testing.assert_allclose(result.grad, np.broadcast_to(array.factor, tiles.shape), rtol=1e-5)
