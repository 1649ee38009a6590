"""Float convolutions one after another in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine import float_tail, float_winograd, pixel_conv, tap_sums
from cabm.engine.float_rows import Layer
from cabm.engine.float_tail import pack_tail
from cabm.engine.float_winograd import WinogradConv
from cabm.engine.tap_sums import TapConv

from .helpers import through

if float_winograd.widest() is None:
    pytest.skip("this CPU runs no loop", allow_module_level=True)


def layer(outputs: int, inputs: int, size: int, **ends: object) -> Layer:
    random = np.random.default_rng(size)
    weight = random.standard_normal((outputs, inputs, size, size), np.float32)
    return Layer(
        weight / np.float32(size * inputs**0.5), random.standard_normal(outputs, np.float32), **ends
    )


def by_layers(layers: list[Layer], x: Tensor, addend: Tensor | None = None) -> Tensor:
    """Return the result of layers in float64."""
    x = x.double()
    for each in layers:
        framed = F.pad(
            x, [each.weight.shape[-1] // 2] * 4, mode="replicate" if each.replicate else "constant"
        )
        x = F.conv2d(framed, *(torch.from_numpy(part).double() for part in (each.weight, each.bias)))
        x = F.leaky_relu(F.pixel_shuffle(x, each.shuffle), each.slope)
        if addend is not None:
            x, addend = x + addend, None
    return x


TAILS = {
    "edsr": [layer(16, 16, 3), layer(12, 16, 5, shuffle=2, replicate=True)],
    "srresnet": [
        layer(20, 20, 3),
        layer(80, 20, 3, shuffle=2, slope=0.2),
        layer(80, 20, 3, shuffle=2, slope=0.1),
        layer(3, 20, 9),
    ],
    "carn": [layer(180, 20, 3, shuffle=3, slope=0.0), layer(3, 20, 3)],
    "idn": [layer(12, 16, 9, shuffle=2)],
    "idn x4": [layer(48, 16, 5, shuffle=4)],
    "edsr and idn": [layer(16, 16, 3), layer(12, 16, 9, shuffle=2)],
}


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("size", [(1, 1), (19, 10)], ids=str)
@pytest.mark.parametrize("band_bytes", [float_tail.BAND_BYTES, 1])
def test_a_tail_equals_its_layers(
    name: str, size: tuple[int, int], band_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in several bands of rows, the fewest that a tail takes."""
    monkeypatch.setattr(float_tail, "BAND_BYTES", band_bytes)
    tail, layers = pack_tail(TAILS[name]), TAILS[name]
    assert tail is not None
    torch.manual_seed(0)
    x = torch.randn(1, layers[0].weight.shape[1], *size)
    torch.testing.assert_close(through(tail, x), by_layers(layers, x).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["edsr", "srresnet", "edsr and idn"])
def test_images_are_added_to_the_first_result_and_to_the_last(name: str) -> None:
    tail, layers = pack_tail(TAILS[name]), TAILS[name]
    assert tail is not None
    torch.manual_seed(0)
    x, addend = torch.randn(2, 1, layers[0].weight.shape[1], 7, 6)
    wanted = by_layers(layers, x, addend).float()
    base = torch.randn_like(wanted)
    torch.testing.assert_close(through(tail, x, addend=addend, base=base), wanted + base, rtol=0, atol=1e-5)


def test_kinds_of_convolutions() -> None:
    """Sums of taps make the colours on the finest grid, and run kernels that Winograd has not."""
    kinds = {name: type(tail.last) for name in TAILS if (tail := pack_tail(TAILS[name]))}
    taps = dict.fromkeys(("srresnet", "carn", "idn", "edsr and idn"), TapConv)
    assert kinds == taps | dict.fromkeys(("edsr", "idn x4"), WinogradConv)


def test_shapes_that_it_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pack_tail([layer(64, 3, 9)]) is None, "few inputs"
    assert pack_tail([layer(16, 16, 7), layer(16, 16, 3)]) is None, "a large kernel before the last"
    assert pack_tail([layer(16, 16, 7, slope=0.1)]) is None
    assert pack_tail([layer(16, 16, 7, replicate=True)]) is None
    monkeypatch.setattr(float_winograd, "widest", lambda: None)
    assert pack_tail(TAILS["carn"]) is None
    monkeypatch.undo()
    monkeypatch.setattr(pixel_conv, "widest", lambda: None)
    assert tap_sums.pack_taps(np.zeros((3, 8, 3, 3), np.float32), np.zeros(3, np.float32)) is None
    assert pack_tail(TAILS["carn"]) is None
