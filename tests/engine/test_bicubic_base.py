"""Bicubic interpolation, compiled and in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cabm.engine import bicubic_base
from cabm.machine import compiled

SIZES = [(1, 1), (1, 7), (5, 3), (2, 2), (22, 22), (96, 96)]


@pytest.fixture(params=["compiled", "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the loop, or what runs without numba."""
    if request.param == "plain":
        monkeypatch.setattr(bicubic_base, "compiled", lambda: None)
    else:
        assert bicubic_base.compiled() is not None


def levels(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(0, 255, shape).astype(np.float32)


def interpolated(x: np.ndarray, scale: int, dtype: torch.dtype) -> np.ndarray:
    image = torch.from_numpy(x).to(dtype).permute(2, 0, 1)[None]
    result = F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
    return result[0].permute(1, 2, 0).numpy()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_that_of_pytorch(size: tuple[int, int], scale: int, channels: int) -> None:
    x = levels(*size, channels)
    found, wanted = bicubic_base.upscale(x, scale), interpolated(x, scale, torch.float64)
    assert found.shape == wanted.shape
    assert found.dtype == np.float32 and found.flags.c_contiguous
    assert np.abs(found - wanted).max() < 2e-4
    # at scale 3, PyTorch's coordinates are less exact
    most = 5e-3 if scale == 3 else 3e-4
    assert np.abs(found - interpolated(x, scale, torch.float32)).max() < most


@pytest.mark.usefixtures("path")
def test_an_image_may_be_a_view() -> None:
    x = levels(3, 6, 9).transpose(1, 2, 0)
    np.testing.assert_array_equal(bicubic_base.upscale(x, 2), bicubic_base.upscale(x.copy(), 2))


@pytest.mark.usefixtures("path")
def test_flat_images_stay_flat() -> None:
    x = np.full((3, 5, 3), 255, np.float32)
    np.testing.assert_allclose(bicubic_base.upscale(x, 4), 255, rtol=0, atol=1e-4)


def test_a_loop_that_computes_wrong_results_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiled._warn_once.cache_clear()
    monkeypatch.setattr(bicubic_base, "jit", lambda loop: lambda *arguments: arguments[-1].fill(0))
    assert bicubic_base.compiled.__wrapped__() is None
    assert "wrong results" in caplog.text
