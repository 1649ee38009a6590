"""Bands of rows by integer Winograd against the same convolutions on whole numbers of PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine.float_rows import Layer
from cabm.engine.winograd_ir import PIXELS
from cabm.machine import cpu

from .helpers import layer_of, weights_of
from .test_byte_rows import EXACT, FEATURES, lanes, parts_of_weights, random_layer, run

__all__ = ["lanes"]  # a fixture


def by_bands(layer: Layer, x: Tensor, addend: Tensor | float = 0.0) -> Tensor:
    """Compute in float64 what a convolution of bands stands for."""
    weight, bias = weights_of(layer)
    weight = parts_of_weights(weight)[0]
    framed, bands = F.pad(x.double(), [1] * 4), []
    for y in range(0, x.shape[2], PIXELS):
        rows = framed[:, :, y : y + PIXELS + 2]
        low, high = rows.min().clamp(max=0), rows.max().clamp(min=0)
        most = {32: 481, 64: 458, 96: 305}[x.shape[1]]
        scale = (high - low) / most if high > low else torch.ones(())
        zero = (-low / scale).round()
        bands.append(F.conv2d(scale * ((rows / scale + zero).round().clamp(0, most) - zero), weight, bias))
    return F.leaky_relu(F.pixel_shuffle(torch.cat(bands, dim=2) + addend, layer.shuffle), layer.slope)


@pytest.mark.parametrize("inputs", [32, 96])
@pytest.mark.parametrize("size", [(1, 1), (3, 97), (4, 50), (14, 5)])
def test_bands_equal_the_convolutions(lanes: int, inputs: int, size: tuple[int, int]) -> None:
    """Bands and tiles that end within the image, several strips, a PixelShuffle, the addend."""
    layers = [
        random_layer(64, inputs, 3, slope=0.3),
        random_layer(32 * 9, 64, 3, shuffle=3, slope=0.1),
        random_layer(3, 32, 3, **EXACT),
    ]
    generator = torch.Generator().manual_seed(1)
    x, addend = (torch.randn(1, channels, *size, generator=generator) for channels in (inputs, 64))
    x *= torch.logspace(-1, 1, size[0])[:, None]
    wanted = by_bands(layers[1], by_bands(layers[0], x, addend))
    wanted = F.conv2d(wanted, *weights_of(layers[2]), padding=1)
    error = (run(lanes, layers, x, addend=addend) - wanted).abs() / wanted.abs().max()
    # a number on the edge between two bytes may be rounded the other way
    assert float(error.max()) < 4e-3
    assert float(error.mean()) < 2e-4


@pytest.mark.parametrize(("channels", "most"), [(32, 481), (64, 458), (96, 305)])
@pytest.mark.parametrize("value", [1, -1, 0])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_are_exact(lanes: int, channels: int, most: int, value: int, sign: int) -> None:
    """The largest codes by the largest weights; scales are 1."""
    weights = torch.full((32, channels, 3, 3), 127.0 * sign), torch.zeros(3, 32, 1, 1)
    weights[1][0, 5] = 2.0**-20
    layers = [layer_of(weights[0], torch.zeros(32)), layer_of(weights[1], torch.zeros(3), **EXACT)]
    x = torch.full((1, channels, 9, 11), float(most * value))
    wanted = F.conv2d(F.conv2d(x, weights[0], padding=1), weights[1])
    assert torch.allclose(run(lanes, layers, x), wanted, rtol=2.0**-16, atol=1e-6)


def test_both_widths_give_the_same_bits() -> None:
    if not all(cpu.compiler_features().get(each) for each in FEATURES.values()):
        pytest.skip("this CPU has one width of VNNI only")
    layers = [random_layer(96 * 4, 32, 3, shuffle=2, slope=0.3), random_layer(3, 96, 3, **EXACT)]
    x = torch.randn(1, 32, 7, 53, generator=torch.Generator().manual_seed(3))
    assert torch.equal(run(16, layers, x), run(8, layers, x))


def test_a_row_with_large_numbers_makes_only_its_bands_coarser(lanes: int) -> None:
    layers = [random_layer(32, 32, 3), random_layer(3, 32, 1, **EXACT)]
    x = torch.randn(1, 32, 16, 20, generator=torch.Generator().manual_seed(4))
    loud = x.clone()
    loud[:, :, 9] *= 1e4
    found, other = (run(lanes, layers, image) for image in (x, loud))
    assert torch.equal(found[:, :, :8], other[:, :, :8])
    assert torch.equal(found[:, :, 12:], other[:, :, 12:])
    assert not torch.equal(found[:, :, 8:12], other[:, :, 8:12])
