from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.nn import functional as F

from cabm.engine import active_tail, float_conv
from cabm.engine.active_tail import WinogradTail
from cabm.engine.float_rows import pixels_together
from cabm.engine.float_winograd import Compiled, WinogradConv, convolution_loop
from cabm.machine import cpu
from cabm.machine.compiled import jit
from cabm.models import build_model
from cabm.quant import Precision


@cache
def compiled(lanes: int) -> Compiled:
    feature = {8: "fma", 16: "avx512f"}[lanes]
    if not cpu.compiler_features().get(feature):
        pytest.skip(f"this CPU has no {feature}")
    return Compiled(lanes, jit(convolution_loop(lanes)))


@pytest.fixture(params=[8, 16])
def loop(request: pytest.FixtureRequest) -> Compiled:
    return compiled(request.param)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (9, 1), (4, 8), (13, 103)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("shuffle", [1, 2, 3])
def test_it_equals_the_direct_sums(
    loop: Compiled, size: tuple[int, int], kernel: int, shuffle: int
) -> None:
    """Odd numbers of channels and sides; the input goes through a PixelShuffle first."""
    generator = torch.Generator().manual_seed(kernel)
    weight = torch.randn(70, 18, kernel, kernel, generator=generator)
    bias = torch.randn(70, generator=generator)
    x = torch.randn(1, 18 * shuffle**2, *size, generator=generator)
    y = F.conv2d(F.pixel_shuffle(x, shuffle).double(), weight.double(), bias.double(), padding=kernel // 2)
    wanted = F.leaky_relu(y, 0.2)
    ordered = pixels_together(x[0], shuffle)[None]
    found = WinogradConv(loop, weight, bias, shuffle=shuffle, slope=0.2)(ordered)
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("backbone", ["carn", "srresnet"])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("band_bytes", [active_tail.BAND_BYTES, 1])
@torch.inference_mode()
def test_a_tail_equals_its_layers(
    loop: Compiled, backbone: str, scale: int, band_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in several bands of rows, the fewest that a tail takes."""
    monkeypatch.setattr(active_tail, "BAND_BYTES", band_bytes)
    torch.manual_seed(scale)
    model = build_model(backbone, scale, Precision("float"), {"num_features": 20})
    x = y = torch.randn(1, 20, 19, 10)
    slopes = [0.0, 0.25][: len(model.factors)]
    for conv, factor, slope in zip(model.upsample, model.factors, slopes, strict=True):
        y = F.leaky_relu(F.pixel_shuffle(conv(y), factor), slope)
    wanted = model.tail(y)
    tail = WinogradTail(loop, [*model.upsample, model.tail], model.factors, slopes)
    torch.testing.assert_close(tail(x, x), wanted, rtol=0, atol=1e-5)


def test_it_serves_the_convolutions_that_it_makes_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = compiled(8)
    monkeypatch.setattr(float_conv, "winograd", lambda: loop)
    weights = {"wide": torch.randn(32, 32, 3, 3), "narrow": torch.randn(32, 3, 3, 3)}
    for name, weight in weights.items():
        x = torch.randn(1, weight.shape[1], 6, 7)
        conv = float_conv.FloatConv(weight, None, torch.float32)
        assert (conv._fast is not None) is (name == "wide")
        torch.testing.assert_close(conv(x), F.conv2d(x, weight, padding=1), rtol=0, atol=1e-3)
        several = x.repeat(2, 1, 1, 1)
        torch.testing.assert_close(conv(several)[1:], conv(x), rtol=0, atol=1e-3)
