"""Convolutions of colours, by loops of all registers that this CPU has."""

from __future__ import annotations

import platform

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cabm.engine import pixel_conv, registers
from cabm.engine.pixel_conv import FEATURES, PixelConv, pack_pixel_conv
from cabm.machine import compiled

from .helpers import require_registers

SIZES = [(1, 1), (1, 7), (5, 3), (22, 22), (96, 96)]


@pytest.fixture(params=sorted(FEATURES))
def lanes(request: pytest.FixtureRequest) -> int:
    return require_registers(FEATURES, request.param)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def direct(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, slope: float) -> np.ndarray:
    """Return the result in float64."""
    image, kernel = (torch.from_numpy(each).double() for each in (x.transpose(2, 0, 1)[None], weight))
    offset = None if bias is None else torch.from_numpy(bias).double()
    sums = F.conv2d(image, kernel, offset, padding=weight.shape[-1] // 2)
    return F.leaky_relu(sums, slope)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kernel", [1, 3, 9])
@pytest.mark.parametrize("outputs", [3, 16, 20, 64, 80])
def test_it_equals_the_direct_sums(lanes: int, size: tuple[int, int], kernel: int, outputs: int) -> None:
    x, weight, bias = numbers(*size, 3), numbers(outputs, 3, kernel, kernel), numbers(outputs)
    for slope in (1.0, 0.25):
        conv = pack_pixel_conv(weight, bias, slope, lanes=lanes)
        assert conv is not None
        found, wanted = conv(x), direct(x, weight, bias, slope)
        assert found.shape == wanted.shape
        assert found.dtype == np.float32 and found.flags.c_contiguous
        assert np.abs(found - wanted).max() <= 2e-6 * np.abs(wanted).max()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere PyTorch has no oneDNN")
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("kernel", [3, 9])
@pytest.mark.parametrize("size", [(7, 5), (22, 22), (72, 72), (96, 96)], ids=str)
def test_it_has_the_bits_of_onednn(lanes: int, size: tuple[int, int], kernel: int, with_bias: bool) -> None:
    """As the simulation runs it, with channels last."""
    x, weight, bias = 60 * numbers(*size, 3), numbers(64, 3, kernel, kernel), numbers(64)
    conv = pack_pixel_conv(weight, bias if with_bias else None, lanes=lanes)
    image = torch.from_numpy(x).permute(2, 0, 1)[None]
    filters = torch.from_numpy(weight).contiguous(memory_format=torch.channels_last)
    offset = torch.from_numpy(bias) if with_bias else None
    wanted = F.conv2d(image, filters, offset, padding=kernel // 2)[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(conv(x), wanted)


def test_stored_fields_make_the_same_convolution(lanes: int) -> None:
    """Also an image that is a view, and no biases."""
    x, weight = numbers(3, 9, 11).transpose(1, 2, 0), numbers(64, 3, 3, 3)
    packed = pack_pixel_conv(weight, None, 0.2, lanes=lanes)
    assert packed is not None
    again = PixelConv(packed.weights.copy(), packed.biases.copy(), packed.size, packed.slope, packed.lanes)
    np.testing.assert_array_equal(again(x), packed(x))
    np.testing.assert_allclose(packed(x), direct(x, weight, None, 0.2), rtol=0, atol=1e-4)


def test_the_widest_registers_are_the_default() -> None:
    conv = pack_pixel_conv(numbers(8, 3, 3, 3), None)
    assert (conv and conv.lanes) == pixel_conv.widest()


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({}, None),
        ({"neon": True}, 4),
        ({"avx2": True, "fma": True}, 8),
        ({"fma": True, "avx512f": True}, 16),
    ],
    ids=str,
)
def test_the_cpu_chooses_the_registers(
    features: dict[str, bool], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registers, "compiler_features", lambda: features)
    assert pixel_conv.widest.__wrapped__() == expected


def test_without_a_loop_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_conv, "compiled", lambda lanes: None)
    assert pack_pixel_conv(numbers(8, 3, 3, 3), None, lanes=16) is None
    stored = PixelConv(numbers(16 * 27), numbers(8), 3, 1.0, 16)
    with pytest.raises(RuntimeError, match="16 numbers per register"):
        stored(numbers(4, 4, 3))


def test_a_loop_that_computes_wrong_results_is_not_used(
    lanes: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiled._warn_once.cache_clear()
    monkeypatch.setattr(pixel_conv, "jit", lambda loop: lambda *arguments: arguments[-1].fill(0))
    assert pixel_conv.compiled.__wrapped__(lanes) is None
    assert "wrong results" in caplog.text
