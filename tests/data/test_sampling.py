"""Informative positions against brute force with PyTorch's bilinear upscaling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from torch.nn.functional import interpolate

from cabm.data import sampling
from cabm.data.sampling import patch_errors, rank_positions
from cabm.imaging.resize import downscale

VARIANTS = ("greedy", "nms", "darts")


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return noise that grows stronger to the right and to the bottom."""
    noise = np.random.default_rng(seed).normal(0, 1, (height, width, 3))
    strength = (
        10 * (1 + np.arange(height)[:, None, None] + np.arange(width)[None, :, None]) / (height + width)
    )
    return np.clip(128 + 8 * strength * noise, 0, 255).astype(np.uint8)


def pair(height: int, width: int, scale: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    hr = photograph(height * scale, width * scale, seed)
    return hr, downscale(hr, scale)


def brute_force(hr: np.ndarray, lr: np.ndarray, scale: int, patch: int) -> np.ndarray:
    """Return the mean squared error of every position, computed patch by patch."""
    low = torch.from_numpy(lr).double().permute(2, 0, 1)[None]
    high = interpolate(low, scale_factor=scale, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    square = (high.numpy() - hr) ** 2
    side = patch * scale
    rows, columns = lr.shape[0] - patch + 1, lr.shape[1] - patch + 1
    return np.array(
        [
            [
                square[top * scale : top * scale + side, left * scale : left * scale + side].mean()
                for left in range(columns)
            ]
            for top in range(rows)
        ]
    )


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 7])
def test_errors_equal_brute_force(scale):
    hr, lr = pair(13, 17, scale)
    expected = brute_force(hr, lr, scale, 5) * (3 * (5 * scale) ** 2) * (2.0 * scale) ** 4
    np.testing.assert_allclose(patch_errors(hr, lr, scale, 5), expected, rtol=1e-9, atol=1e-3)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 4), st.integers(1, 4), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_greedy_keeps_the_hardest_positions_in_order(height, width, scale, patch, seed):
    hr, lr = pair(height + patch - 1, width + patch - 1, scale, seed)
    expected = brute_force(hr, lr, scale, patch).ravel()
    found = rank_positions(hr, lr, scale, lr_patch=patch, portion=0.3)
    assert len(found) == max(1, round(0.3 * (height * width)))
    errors = expected.reshape(height, width)[tuple(found.T)]
    np.testing.assert_allclose(errors, np.sort(expected)[::-1][: len(found)], rtol=1e-9, atol=1e-9)


def test_bands_do_not_change_the_result(monkeypatch):
    hr, lr = pair(40, 21, 3)
    whole = patch_errors(hr, lr, 3, 6)
    monkeypatch.setattr(sampling, "BAND_PIXELS", 7 * 21)
    assert_array_equal(patch_errors(hr, lr, 3, 6), whole)


def test_largest_errors_do_not_overflow():
    lr = np.zeros((6, 6, 3), np.uint8)
    for scale in (2, 3, 4, 5, 8):
        hr = np.full((6 * scale, 6 * scale, 3), 255, np.uint8)
        expected = (255 * (2 * scale) ** 2) ** 2 * 3 * (4 * scale) ** 2
        assert (patch_errors(hr, lr, scale, 4) == expected).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_errors_keep_their_order(variant):
    flat = np.full((24, 32, 3), 90, np.uint8)
    found = rank_positions(flat, downscale(flat, 2), 2, lr_patch=4, portion=1, variant=variant)
    if variant == "greedy":
        assert_array_equal(found, np.argwhere(np.ones((9, 13), bool)))
    if variant == "nms":
        assert_array_equal(found, [(top, left) for top in (0, 4, 8) for left in (0, 4, 8, 12)])


@pytest.mark.parametrize("variant", ["nms", "darts"])
@pytest.mark.parametrize("portion", [0.05, 0.3, 1])
def test_positions_do_not_overlap_and_none_can_be_added(variant, portion):
    hr, lr = pair(40, 50, 2)
    hard = rank_positions(hr, lr, 2, lr_patch=7, portion=portion)
    found = rank_positions(hr, lr, 2, lr_patch=7, portion=portion, variant=variant)
    covered = np.zeros((40, 50), int)
    for top, left in found:
        covered[top : top + 7, left : left + 7] += 1
    assert covered.max() == 1
    assert {tuple(position) for position in found} <= {tuple(position) for position in hard}
    assert all(covered[top : top + 7, left : left + 7].any() for top, left in hard)


def test_nms_starts_from_the_hardest():
    hr, lr = pair(30, 30, 2)
    hard = rank_positions(hr, lr, 2, lr_patch=6, portion=0.4).tolist()
    expected = []
    for top, left in hard:
        if all(abs(top - y) >= 6 or abs(left - x) >= 6 for y, x in expected):
            expected.append([top, left])
    assert rank_positions(hr, lr, 2, lr_patch=6, portion=0.4, variant="nms").tolist() == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_chunks_do_not_change_the_result(variant, monkeypatch):
    hr, lr = pair(30, 30, 2)
    whole = rank_positions(hr, lr, 2, lr_patch=6, portion=0.7, variant=variant)
    monkeypatch.setattr(sampling, "CHUNK", 11)
    assert_array_equal(rank_positions(hr, lr, 2, lr_patch=6, portion=0.7, variant=variant), whole)


def test_darts_depend_only_on_the_seed():
    hr, lr = pair(40, 50, 2)
    throws = [
        rank_positions(hr, lr, 2, lr_patch=6, portion=0.5, variant="darts", seed=seed).tolist()
        for seed in (0, 0, 1)
    ]
    assert throws[0] == throws[1] != throws[2]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(3, 20), (20, 3), (1, 1)])
def test_an_image_smaller_than_a_patch_has_no_positions(variant, shape):
    hr, lr = pair(*shape, 2)
    found = rank_positions(hr, lr, 2, lr_patch=4, portion=0.5, variant=variant)
    assert found.shape == (0, 2) and found.dtype == np.int64


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_of_one_patch_has_one_position(variant):
    hr, lr = pair(4, 4, 3)
    found = rank_positions(hr, lr, 3, lr_patch=4, portion=0.01, variant=variant)
    assert found.tolist() == [[0, 0]] and found.dtype == np.int64


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_read_only_view_is_enough(variant):
    hr, lr = pair(12, 12, 2)
    expected = rank_positions(hr, lr, 2, lr_patch=4, portion=0.5, variant=variant)
    hr.flags.writeable = lr.flags.writeable = False
    assert_array_equal(rank_positions(hr, lr, 2, lr_patch=4, portion=0.5, variant=variant), expected)
