from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cabm.engine import float_conv, float_winograd
from cabm.engine.float_rows import pixels_together
from cabm.engine.float_winograd import FEATURES, pack_winograd

from .helpers import require_registers


@pytest.fixture(params=sorted(FEATURES))
def lanes(request: pytest.FixtureRequest) -> int:
    return require_registers(FEATURES, request.param)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def direct(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, replicate: bool = False) -> np.ndarray:
    """Convolve (h,w,I) in float64."""
    image, kernel, offset = (
        torch.from_numpy(each).double() for each in (x.transpose(2, 0, 1)[None], weight, bias)
    )
    framed = F.pad(image, [weight.shape[-1] // 2] * 4, mode="replicate" if replicate else "constant")
    return F.conv2d(framed, kernel, offset)[0].permute(1, 2, 0).numpy()


def shuffled(x: np.ndarray, factor: int) -> np.ndarray:
    """Return PixelShuffle(factor) of (h,w,C)."""
    return F.pixel_shuffle(torch.from_numpy(x).permute(2, 0, 1), factor).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (9, 1), (4, 8), (13, 103)], ids=str)
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("shuffle", [1, 2, 3])
def test_it_equals_the_direct_sums(lanes: int, size: tuple[int, int], kernel: int, shuffle: int) -> None:
    """Odd numbers of channels and sides; the input goes through a PixelShuffle first."""
    weight, bias = numbers(70, 18, kernel, kernel), numbers(70)
    x = numbers(*size, 18 * shuffle**2)
    y = direct(shuffled(x, shuffle), weight, bias)
    wanted = np.where(y < 0, 0.2 * y, y)
    ordered = np.ascontiguousarray(pixels_together(x.transpose(2, 0, 1), shuffle).transpose(1, 2, 0))
    conv = pack_winograd(weight, bias, shuffle=shuffle, slope=0.2, lanes=lanes)
    assert conv is not None
    found = conv(ordered)
    assert found.shape == wanted.shape and found.dtype == np.float32
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (13, 26)], ids=str)
@pytest.mark.parametrize("kernel", [3, 5])
def test_the_outermost_pixels_lie_beyond_the_border(lanes: int, size: tuple[int, int], kernel: int) -> None:
    weight, bias, x = numbers(12, 10, kernel, kernel), numbers(12), numbers(*size, 10)
    conv = pack_winograd(weight, bias, replicate=True, lanes=lanes)
    assert conv is not None
    wanted = direct(x, weight, bias, replicate=True)
    assert np.abs(conv(x) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_part_of_the_rows_is_the_same_as_in_the_whole(lanes: int) -> None:
    """The input is a part of wider memory."""
    conv = pack_winograd(numbers(20, 10, 3, 3), None, lanes=lanes)
    assert conv is not None
    x = numbers(14, 11, 32)[:, :9, :10]
    whole, memory = conv(x.copy()), conv.memory_for(x, 8)
    found = conv(x, 4, 11, out=memory)
    assert np.shares_memory(found, memory)
    np.testing.assert_array_equal(found, whole[4:11])


def test_where_no_loop_runs_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float_winograd, "widest", lambda: None)
    assert pack_winograd(numbers(8, 8, 3, 3), None) is None
    monkeypatch.undo()
    conv = pack_winograd(numbers(8, 8, 3, 3), None)
    if conv is None:
        pytest.skip("this CPU runs no loop")
    monkeypatch.setattr(float_winograd, "compiled", lambda lanes: None)
    with pytest.raises(RuntimeError, match="runs here"):
        conv(numbers(4, 4, 8))


def test_it_serves_the_convolutions_that_it_makes_faster() -> None:
    if float_winograd.widest() is None:
        pytest.skip("this CPU runs no loop")
    weights = {"wide": torch.randn(32, 32, 3, 3), "narrow": torch.randn(32, 3, 3, 3)}
    for name, weight in weights.items():
        x = torch.randn(1, weight.shape[1], 6, 7)
        conv = float_conv.FloatConv(weight, None, torch.float32)
        assert (conv._fast is not None) is (name == "wide")
        torch.testing.assert_close(conv(x), F.conv2d(x, weight, padding=1), rtol=0, atol=1e-3)
        several = x.repeat(2, 1, 1, 1)
        torch.testing.assert_close(conv(several)[1:], conv(x), rtol=0, atol=1e-3)
