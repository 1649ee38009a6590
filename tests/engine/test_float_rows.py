from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cabm.engine import float_rows
from cabm.engine.float_rows import Layer, Rows, pack_rows, rows
from cabm.machine.compiled import Loop

from .helpers import (
    BACKBONES,
    Engine,
    calibrated,
    layer_of,
    needs_units,
    photograph,
    row,
    through,
    weights_of,
)


@pytest.fixture
def loop() -> Loop:
    found = float_rows.compiled()
    if found is None:
        pytest.skip("this CPU has no AMX with bfloat16")
    return found


def random_layers(channels: int, shuffle: int, *, replicate: bool) -> list[Layer]:
    generator = torch.Generator().manual_seed(shuffle)

    def layer(outputs: int, inputs: int, size: int, **ends) -> Layer:
        weight = torch.randn(outputs, inputs, size, size, generator=generator) / (size * inputs**0.5)
        return layer_of(weight, torch.randn(outputs, generator=generator), **ends)

    return [
        layer(channels, 18, 3),
        layer(16 * shuffle**2, channels, 3, shuffle=shuffle, slope=0.2),
        layer(3 * 4, 16, 5, shuffle=2, replicate=replicate),
    ]


def by_layers(layers: list[Layer], x: torch.Tensor, addend: torch.Tensor) -> torch.Tensor:
    """In float64 but for what is rounded to bfloat16: weights, and what a convolution reads."""
    x, mode = x.double(), {False: "constant", True: "replicate"}
    for number, layer in enumerate(layers):
        weight, bias = weights_of(layer)
        reach = weight.shape[-1] // 2
        x = F.pad(x.bfloat16().double(), [reach] * 4, mode=mode[layer.replicate])
        x = F.conv2d(x, weight.bfloat16().double(), bias)
        x = x + addend if number == 0 else x
        x = F.leaky_relu(F.pixel_shuffle(x, layer.shuffle), layer.slope)
    return x


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (9, 2), (13, 65), (6, 131)])
@pytest.mark.parametrize("shuffle", [1, 2, 3])
@pytest.mark.parametrize("replicate", [False, True])
def test_rows_equal_the_convolutions(
    loop: Loop, size: tuple[int, int], shuffle: int, replicate: bool
) -> None:
    """Rows that end within a tile register, PixelShuffles, both kinds of border, both addends."""
    layers = random_layers(48, shuffle, replicate=replicate)
    generator = torch.Generator().manual_seed(1)
    x, addend = (torch.randn(1, channels, *size, generator=generator) for channels in (18, 48))
    base = torch.randn(1, 3, *(2 * shuffle * side for side in size), generator=generator)
    found = through(Rows(loop, pack_rows(layers)), x, addend=addend, base=base)
    wanted = by_layers(layers, x, addend) + base
    assert found.shape == wanted.shape
    # a sum on the edge between two bfloat16 may be rounded the other way
    assert float((found - wanted).abs().max()) < 0.01
    assert float((found - wanted).abs().mean()) < 1e-4


@pytest.mark.parametrize("size", [(1, 1), (5, 20), (12, 70)])
@pytest.mark.parametrize("replicate", [False, True])
def test_two_parts_keep_16_bits(loop: Loop, size: tuple[int, int], replicate: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(20, 3, 9, 9, generator=generator)
    bias = torch.randn(20, generator=generator)
    layer = layer_of(weight, bias, slope=0.3, replicate=replicate, parts=2)
    x = 255 * torch.rand(1, 3, *size, generator=generator)
    padded = F.pad(x, [4] * 4, mode="replicate" if replicate else "constant").double()
    wanted = F.leaky_relu(F.conv2d(padded, weight.double(), bias.double()), 0.3)
    most = F.conv2d(padded, weight.double().abs()) + 1
    found = through(Rows(loop, pack_rows([layer])), x)
    assert found.shape == (1, 20, *size)
    assert float(((found - wanted).abs() / most).max()) < 2.0**-16


def test_only_whole_tiles_of_channels_between_convolutions_are_taken(loop: Loop) -> None:
    layers = random_layers(48, 2, replicate=False)
    assert rows(layers, bfloat16=True) is not None
    assert rows(layers, bfloat16=False) is None
    assert rows(random_layers(40, 2, replicate=False), bfloat16=True) is None


@needs_units
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("backbone", BACKBONES)
@torch.inference_mode()
def test_a_network_ends_as_in_float32(loop: Loop, scale: int, backbone: str) -> None:
    options = {"replicate_tail": True} if backbone == "edsr" else {}
    model = calibrated(backbone, scale=scale, options=options)
    tiles, bits = photograph(21, 34), row(model, "mixed")
    engines = [Engine(model, float_dtype=dtype) for dtype in (torch.bfloat16, torch.float32)]
    narrow, wide = (engine.run(tiles, bits, dtype=np.float32) for engine in engines)
    assert not torch.equal(narrow, wide)
    assert float((narrow - wide).abs().mean()) < 0.006 * float((wide - wide.mean()).abs().mean())
