"""Convolutions on bytes against the same ones on whole numbers of PyTorch, and against float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine import byte_rows, float_rows
from cabm.engine.byte_rows import pack_rows
from cabm.engine.ends import Ends, fastest
from cabm.engine.float_rows import Layer, Rows
from cabm.machine import cpu

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

FEATURES = {16: "avx512vnni", 8: "avxvnni"}
"""By lanes, LLVM's name of the instructions."""

EXACT: dict[str, Any] = {"input_bytes": 2, "weight_bytes": 2}


@pytest.fixture(params=FEATURES, ids=lambda lanes: f"{32 * lanes} bits")
def lanes(request: pytest.FixtureRequest) -> int:
    if not cpu.compiler_features().get(FEATURES[request.param]):
        pytest.skip(f"this CPU has no {FEATURES[request.param]}")
    return request.param


def run(lanes: int, layers: list[Layer], x: Tensor, **images: Tensor) -> Tensor:
    loop, _ = byte_rows.compile_loop(lanes)
    return through(Rows(loop, pack_rows(layers, lanes)), x, **images)


def random_layer(outputs: int, inputs: int, size: int, **ends: Any) -> Layer:
    generator = torch.Generator().manual_seed(outputs + inputs + size)
    weight = torch.randn(outputs, inputs, size, size, generator=generator) / (size * inputs**0.5)
    return layer_of(weight, torch.randn(outputs, generator=generator), **ends)


def parts_of_rows(x: Tensor) -> list[Tensor]:
    """Return what the upper and the lower bytes of (1,C,h,w) stand for, each row with its own scale."""
    high, low = x.amax((1, 3), keepdim=True).clamp(min=0), x.amin((1, 3), keepdim=True).clamp(max=0)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, 1)
    zero = (-low / scale).round()
    upper = scale * ((x / scale + zero).round().clamp(0, 255) - zero)
    return [upper, scale / 255 * ((x - upper) / scale * 255).round()]


def parts_of_weights(weight: Tensor) -> list[Tensor]:
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    upper = scale * (weight / scale).round()
    return [upper, scale / 254 * ((weight - upper) / scale * 254).round()]


def by_layers(layers: list[Layer], x: Tensor, addend: Tensor) -> Tensor:
    """Compute in float64 what the layers stand for."""
    x = x.double()
    for number, layer in enumerate(layers):
        kernel, bias = weights_of(layer)
        reach = kernel.shape[-1] // 2
        mode = "replicate" if layer.replicate else "constant"
        inputs = [F.pad(part, [reach] * 4, mode=mode) for part in parts_of_rows(x)]
        weights = parts_of_weights(kernel)
        result = F.conv2d(inputs[0], weights[0], bias)
        result += F.conv2d(inputs[1], weights[0]) if layer.input_bytes == 2 else 0
        result += F.conv2d(inputs[0], weights[1]) if layer.weight_bytes == 2 else 0
        result = result + addend if number == 0 else result
        x = F.leaky_relu(F.pixel_shuffle(result, layer.shuffle), layer.slope)
    return x


LAST = {
    "colours": {"outputs": 3, "size": 5, "weight_bytes": 2},
    "colours of 16 bits": {"outputs": 3, "size": 3, "input_bytes": 2},
    "shuffled": {"outputs": 12, "size": 5, "shuffle": 2, **EXACT},
    "many": {"outputs": 75, "size": 1, "shuffle": 5},
}


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (9, 2), (13, 37)])
@pytest.mark.parametrize("replicate", [False, True])
@pytest.mark.parametrize("last", LAST)
def test_rows_equal_the_convolutions(lanes: int, last: str, replicate: bool, size: tuple[int, int]) -> None:
    """Rows that end within a block, PixelShuffles, both kinds of border, all parts, both addends."""
    layers = [
        random_layer(48, 16, 3, slope=0.3),
        random_layer(32 * 9, 48, 3, shuffle=3, slope=0.1, input_bytes=2, replicate=replicate),
        random_layer(inputs=32, replicate=replicate, **LAST[last]),
    ]
    generator = torch.Generator().manual_seed(1)
    x, addend = (torch.randn(1, channels, *size, generator=generator) for channels in (16, 48))
    wanted = by_layers(layers, x, addend)
    base = torch.randn(wanted.shape, generator=generator)
    found = run(lanes, layers, x, addend=addend, base=base)
    # a number on the edge between two bytes may be rounded the other way
    assert float((found - wanted - base).abs().max()) < 0.02
    assert float((found - wanted - base).abs().mean()) < 1e-3


@pytest.mark.parametrize("x", [torch.zeros(1, 16, 4, 9), torch.full((1, 16, 4, 9), -7.0)], ids=["0", "-7"])
def test_constant_images_are_exact(lanes: int, x: Tensor) -> None:
    """A row of zeros has no scale; one of negative numbers has its zero at byte 255."""
    weight, bias = torch.ones(16, 16, 3, 3), torch.arange(16.0)
    layer, wanted = layer_of(weight, bias), F.conv2d(x, weight, bias, padding=1)
    assert torch.allclose(run(lanes, [layer], x), wanted, rtol=1e-6)


@pytest.mark.parametrize("size", [3, 9])
def test_two_bytes_keep_16_bits(lanes: int, size: int) -> None:
    """Inputs that are all large: sums in float32 would lose their last bits."""
    layer = random_layer(3, 64, size, **EXACT)
    x = 255 - torch.rand(1, 64, 6, 50, generator=torch.Generator().manual_seed(2))
    padded = F.pad(x, [size // 2] * 4).double()
    weight, bias = weights_of(layer)
    wanted = F.conv2d(padded, weight, bias)
    most = F.conv2d(padded, weight.abs())
    assert float(((run(lanes, [layer], x) - wanted).abs() / most).max()) < 2.0**-15


def test_both_widths_give_the_same_bits() -> None:
    if not all(cpu.compiler_features().get(each) for each in FEATURES.values()):
        pytest.skip("this CPU has one width of VNNI only")
    layers = [random_layer(48, 16, 3, slope=0.3), random_layer(3, 48, 5, **EXACT)]
    x = torch.randn(1, 16, 7, 41, generator=torch.Generator().manual_seed(3))
    assert torch.equal(run(16, layers, x), run(8, layers, x))


def test_only_whole_registers_of_channels_are_taken(lanes: int) -> None:
    assert byte_rows.rows([random_layer(16, 16, 3)]) is not None
    assert byte_rows.rows([random_layer(16, 3, 3)]) is None
    assert byte_rows.rows([random_layer(40, 16, 3), random_layer(3, 40, 3)]) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_take_over_where_amx_does_not_run(
    lanes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless a type is asked for, which the convolutions then keep."""
    monkeypatch.setattr(float_rows, "compiled", lambda: None)
    layers = [random_layer(16, 16, 3)]
    found = Ends(dtype, in_bytes=True).rows(layers)
    assert found is not None and found.packed.lanes in FEATURES
    assert not isinstance(Ends(dtype).rows(layers), Rows)
    assert fastest().in_bytes


@needs_units
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("backbone", BACKBONES)
@torch.inference_mode()
def test_a_network_ends_as_in_float32(lanes: int, scale: int, backbone: str) -> None:
    options = {"replicate_tail": True} if backbone == "edsr" else {}
    model = calibrated(backbone, scale=scale, options=options)
    tiles, bits = photograph(21, 34), row(model, "mixed")
    engines = (
        Engine(model, ends=Ends(torch.float32, in_bytes=True)),
        Engine(model, float_dtype=torch.float32),
    )
    narrow, wide = (engine.run(tiles, bits, dtype=np.float32) for engine in engines)
    assert not torch.equal(narrow, wide)
    assert float((narrow - wide).abs().mean()) < 0.02 * float((wide - wide.mean()).abs().mean())


def test_stored_arrays_make_the_same_rows(lanes: int) -> None:
    """Also where they lie in memory as a file gives them: read-only, from any byte on."""
    layers = [random_layer(48, 16, 3, slope=0.3), random_layer(3, 48, 5, **EXACT)]
    x = torch.randn(1, 16, 7, 41, generator=torch.Generator().manual_seed(3))
    packed = pack_rows(layers, lanes)
    stored = b"?" + b"".join(array.tobytes() for array in packed.arrays)
    arrays, start = [], 1
    for array in packed.arrays:
        arrays.append(np.frombuffer(stored, array.dtype, array.size, start).reshape(array.shape))
        start += array.nbytes
    loop, _ = byte_rows.compile_loop(lanes)
    found = through(Rows(loop, replace(packed, arrays=arrays)), x)
    assert torch.equal(found, run(lanes, layers, x))
