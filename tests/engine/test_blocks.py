from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cabm.engine import fused, onednn, supports
from cabm.engine.blocks import Block, residual_chain
from cabm.engine.chains import Chain, Place, own
from cabm.engine.elementwise import encode
from cabm.engine.fused import CompiledWeights, Kernel
from cabm.engine.grid import Grid, Storage
from cabm.engine.layer_numbers import LEAKY_TO_BOTH
from cabm.engine.layerwise import to_float
from cabm.engine.modules import pack_conv
from cabm.engine.packing import BoundConv, Quantizer
from cabm.models import Backbone
from cabm.quant.layers import QuantConv2d

from .helpers import (
    BACKBONES,
    CHOICES,
    FORMS,
    OPTIONS,
    Engine,
    calibrated,
    compiled,
    needs_units,
    photograph,
    row,
    scaling,
    simulated,
    through,
)


@pytest.fixture(params=FORMS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Every form that this CPU can execute, as if it were the one chosen."""
    chosen = compiled(request.param)
    monkeypatch.setattr(fused, "compiled", lambda **_: chosen)
    return chosen


WIDE = {
    "edsr": {"num_features": 64, "num_blocks": 3},
    "srresnet": {"num_features": 64, "num_blocks": 3},
    "idn": {"num_features": 64, "num_distilled": 16, "num_blocks": 2},
    "carn": {"num_features": 64},
}
RESIDUAL = ["edsr", "srresnet"]


def both(model: Backbone, monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, Engine]:
    """Return the model with compiled layers, and layer by layer."""
    whole = Engine(model, float_dtype=torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "compiled", lambda **_: None)
        layered = Engine(model, float_dtype=torch.float32)
    sample = row(model, 8)
    bits = None if sample is None else tuple(sample[0].tolist())
    assert isinstance(whole.program.plan(bits), Chain)
    assert not isinstance(layered.program.plan(bits), Chain)
    return whole, layered


@needs_units
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("bits", [4, "mixed"])
@pytest.mark.parametrize("backbone", RESIDUAL)
def test_blocks_equal_layer_by_layer(
    backbone: str, bits: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = calibrated(backbone, options=WIDE[backbone])
    whole, layered = both(model, monkeypatch)
    for size in ((1, 1), (2, 7), (3, 6), (13, 11), (1, 40), (24, 33)):
        tiles, rows = photograph(*size, count=2, seed=3), row(model, bits, count=2)
        found = whole.run(tiles, rows, dtype=np.float32)
        assert torch.equal(found, layered.run(tiles, rows, dtype=np.float32)), size


VARIANTS = [
    {"options": {"num_features": 36}},
    {"kind": "pams"},
    {"kind": "cadyq"},
    {"weight_bits": 4},
    {"weight_bits": "same"} | CHOICES,
    *({name: value} for name, value in CHOICES.items()),
    {"search_space": (4, 8)},
]
FEW = [VARIANTS[0], VARIANTS[4]]


@needs_units
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    ("backbone", "variant"),
    [*(("edsr", each) for each in VARIANTS), *(("srresnet", each) for each in FEW)],
    ids=str,
)
def test_every_kind_of_block_is_equal(
    backbone: str, variant: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = calibrated(backbone, **variant)
    whole, layered = both(model, monkeypatch)
    tiles, rows = photograph(17, 20, count=3, seed=4), row(model, "mixed", count=3)
    found = whole.run(tiles, rows, dtype=np.float32)
    assert torch.equal(found, layered.run(tiles, rows, dtype=np.float32))


@needs_units
@pytest.mark.usefixtures("kernel")
def test_scaled_residuals_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    model = calibrated("edsr", options={"res_scale": 0.1, "num_features": 128, "num_blocks": 1})
    whole, layered = both(model, monkeypatch)
    tiles, rows = photograph(9, 20, seed=4), row(model, "mixed")
    found = whole.run(tiles, rows, dtype=np.float32)
    assert torch.equal(found, layered.run(tiles, rows, dtype=np.float32))


@needs_units
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("backbone", ["carn", "idn"])
def test_every_convolution_equals_that_of_onednn(kernel: Kernel, backbone: str, bits: int) -> None:
    """Of all shapes and groups, with the epilogue that writes both values and codes."""
    model = calibrated(backbone, options=WIDE[backbone])
    generator = torch.Generator().manual_seed(bits)
    shapes = set()
    for conv in (module for module in model.modules() if isinstance(module, QuantConv2d)):
        shape = conv.in_channels, conv.out_channels, conv.groups
        if shape in shapes:
            continue
        shapes.add(shape)
        out = Grid(0.7, bits, Storage.SHIFTED)
        for storage in (Storage.SHIFTED, Storage.POSITIVE):
            grid = Grid(1.3, bits, storage)
            outputs = slice(None) if conv.groups > 1 else slice(3, None)
            reads = Quantizer((grid.alpha,), (bits,))
            packs = [
                pack_conv(conv, reads, storage, outputs=outputs, pack=pack).at(grid)
                for pack in (kernel.pack, None)
            ]
            x = torch.randn(1, conv.in_channels, 7, 11, generator=generator)
            values = to_float(packs[1], encode(x, grid))
            values = torch.where(values < 0, values * np.float32(0.05), values)
            found = run_alone(kernel, packs[0], x, out)
            assert torch.equal(found[0], values), shape
            assert torch.equal(found[1], encode(values, out)), shape


def run_alone(kernel: Kernel, conv: BoundConv, x: torch.Tensor, out: Grid) -> list[torch.Tensor]:
    """Return the values, and the codes on a grid, of one convolution and a LeakyReLU of slope 0.05."""
    channels, outputs = x.shape[1], conv.conv.channels
    results = []
    for follow in (False, True):
        chain = Chain(kernel, outputs)
        read, written = chain.codes(channels, conv.grid.zero), chain.codes(outputs, out.zero)
        chain.encode(read, conv.grid)
        floats = chain.floats(outputs) if follow else chain.result
        chain.convolve(conv, LEAKY_TO_BOTH, read, own(out, 0.05), target=written, floats=Place(floats))
        if follow:  # a convolution by 1 makes the codes visible
            weight = np.zeros((outputs, outputs, 3, 3))
            weight[range(outputs), range(outputs), 1, 1] = 1
            packed = kernel.pack(weight, shifted=True)
            ones = BoundConv(packed, out, scaling(1, np.full(outputs, 128)))
            chain.convolve(ones, LEAKY_TO_BOTH, written, own(out), target=read, floats=Place(chain.result))
        results.append(through(chain.run, x))
    return [results[0], results[1].to(torch.uint8)]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("variant", [{}, *FEW], ids=str)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_backbones_agree_with_the_simulation(backbone: str, variant: dict) -> None:
    options = OPTIONS[backbone] if variant else WIDE[backbone]
    options = options | variant.get("options", {})
    model = calibrated(backbone, **variant | {"options": options})
    engine = Engine(model, float_dtype=torch.float32)
    for size in ((21, 26), (1, 7), (5, 1)):
        tiles, rows = photograph(*size, count=2, seed=5), row(model, "mixed", count=2)
        wanted = simulated(model, tiles, rows)
        difference = (engine.run(tiles, rows, dtype=np.float32) - wanted).abs()
        assert float(difference.mean()) <= 0.05


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("pixel", [0, 255])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_uniform_tiles_agree_with_the_simulation(backbone: str, pixel: int) -> None:
    model = calibrated(backbone)
    tiles, rows = torch.full((1, 3, 12, 13), pixel, dtype=torch.uint8), row(model, "mixed")
    found = Engine(model, float_dtype=torch.float32).run(tiles, rows, dtype=np.float32)
    assert float((found - simulated(model, tiles, rows)).abs().mean()) <= 0.25


@pytest.mark.parametrize(
    ("height", "width"), [(3, width) for width in range(1, 14)] + [(1, 25), (2, 49), (9, 40)]
)
def test_sums_codes_and_borders_are_exact(kernel: Kernel, height: int, width: int) -> None:
    """Compare with double precision; factors and steps are powers of two, so nothing is rounded."""
    channels = 64
    generator = np.random.default_rng(width)
    convs = torch.from_numpy(generator.integers(-127, 128, (4, channels, channels, 3, 3)))
    x = torch.from_numpy(generator.integers(-508, 509, (1, channels, height, width)) / 4).float()
    biases = torch.from_numpy(generator.integers(-64, 65, (4, channels)) / 16)
    exponents = generator.integers(9, 15, (4, channels))
    exponents[1::2] -= 2
    factors = torch.from_numpy(2.0**-exponents)
    # of the codes that are read, hidden, read and hidden; the steps are 1, 2, 0.5 and 1
    reads = [Grid(127.0, 8, Storage.SHIFTED), Grid(30.0, 4, Storage.POSITIVE, unsigned=True)]
    reads += [Grid(15.5, 6, Storage.SHIFTED), Grid(255.0, 8, Storage.POSITIVE, unsigned=True)]
    skips = [Grid(63.5, 8, Storage.SHIFTED), Grid(15.875, 8, Storage.SHIFTED)]
    residual = Grid(31.75, 8, Storage.SIGNED)
    bound = [
        BoundConv(
            kernel.pack(conv.numpy(), shifted=index % 2 == 0),
            reads[index],
            scaling(factor, bias),
        )
        for index, (conv, factor, bias) in enumerate(zip(convs, factors, biases, strict=True))
    ]
    blocks = [Block(bound[2 * i], bound[2 * i + 1], skips[i], residual, 0.5) for i in range(2)]
    found = through(residual_chain(kernel, blocks).run, x)

    def codes(values: torch.Tensor, grid: Grid) -> torch.Tensor:
        return (values * float(grid.inverse)).round().clamp(grid.low, grid.levels)

    def convolved(x: torch.Tensor, number: int) -> torch.Tensor:
        sums = F.conv2d(x, convs[number].double(), padding=1)
        return sums * factors[number].view(1, -1, 1, 1) + biases[number].view(1, -1, 1, 1)

    total = x.double()
    for i, skip in enumerate(skips):
        hidden = codes(convolved(codes(total, reads[2 * i]), 2 * i), reads[2 * i + 1])
        left = codes(convolved(hidden, 2 * i + 1) * 0.5, residual)
        total = left * float(residual.scale) + codes(total, skip) * float(skip.scale)
        assert left.min() < 0 < left.max() and left.unique().numel() > 10
    assert torch.equal(found.double(), total)


@pytest.mark.usefixtures("kernel")
def test_several_threads_call_it_at_once() -> None:
    model = calibrated("edsr", options=WIDE["edsr"])
    engine = Engine(model)
    tiles, bits = photograph(19, 23, count=8, seed=6), row(model, "mixed", count=8)
    wanted = engine.run(tiles, bits, threads=1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: engine.run(tiles, bits, threads=2), range(4)))
    assert all(torch.equal(each, wanted) for each in found)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_layers_read_by_address_stays(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python 3.12 on, a property that threads compute at once keeps the array of one of them only."""
    if fused.compiled() is None:
        pytest.skip("no form runs here")
    model = calibrated(backbone)
    tiles, bits = photograph(9, 11, seed=4), row(model, "mixed")
    wanted = Engine(model).run(tiles, bits, dtype=np.float32)
    monkeypatch.setattr(BoundConv, "affine", property(BoundConv.affine.func))  # keeps none
    assert torch.equal(Engine(model).run(tiles, bits, dtype=np.float32), wanted)


def test_it_is_compiled_once(kernel: Kernel) -> None:
    """Tiles call the signature that was compiled at first; threads must not compile."""
    model = calibrated("edsr", options=WIDE["edsr"])
    engine = Engine(model)
    engine.run(photograph(4, 4), row(model, 8))
    before = list(kernel.run.signatures)
    for size in ((5, 9), (16, 16)):
        engine.run(photograph(*size), row(model, 8))
    assert kernel.run.signatures == before
    assert len(before) == 1


@pytest.mark.parametrize("code", [127, -127], ids=["highest", "lowest"])
@pytest.mark.parametrize("value", [-128, -127, 127])
def test_saturated_sums_are_exact(kernel: Kernel, code: int, value: int) -> None:
    """All inputs and all weights at their ends, the largest number of channels that tests can afford."""
    height, width, channels = 3, 5, 192
    grids = Grid(127.0, 8, Storage.SHIFTED), Grid(255.0, 8, Storage.POSITIVE, unsigned=True)
    weights = torch.full((channels, channels, 3, 3), code)

    def packed(grid: Grid) -> CompiledWeights:
        return kernel.pack(weights.numpy(), shifted=grid.zero != 0)

    convs = [
        BoundConv(packed(grid), grid, scaling(factor))
        for grid, factor in zip(grids, (2.0**-8, 2.0**-20), strict=True)
    ]
    block = Block(*convs, skip=grids[0], residual=Grid(127.0, 8, Storage.SIGNED))
    x = torch.full((1, channels, height, width), float(value))
    found = through(residual_chain(kernel, [block]).run, x)
    x = x.clamp(-127, 127).double()
    hidden = (F.conv2d(x, weights.double(), padding=1) / 2**8).round().clamp(0, 255)
    residual = (F.conv2d(hidden, weights.double(), padding=1) / 2**20).round().clamp(-127, 127)
    assert torch.equal(found.double(), residual + x)


def test_more_channels_than_sums_can_hold_are_refused(kernel: Kernel) -> None:
    form = kernel.form
    largest = 9 * 255 * 127
    assert form.most_channels * largest < 2**31 <= (form.most_channels + 1) * largest
    few = replace(form, most_channels=63)
    assert not fused._fuses(QuantConv2d(64, 64, 3, padding=1), few)
    assert fused._fuses(QuantConv2d(64, 64, 3, padding=1), form)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("backbone", BACKBONES)
def test_nothing_of_onednn_is_needed(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = calibrated(backbone)
    tiles, bits = photograph(9, 14, count=2), row(model, "mixed", count=2)
    wanted = Engine(model).run(tiles, bits)

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("oneDNN's integer convolutions must not be used")

    monkeypatch.setattr(onednn, "available", lambda: (False, "this CPU has no integer units"))
    monkeypatch.setattr(onednn.IntegerConv, "__init__", fail)
    assert supports(model) is None
    assert torch.equal(Engine(model).run(tiles, bits), wanted)
    monkeypatch.setattr(fused, "compiled", lambda **_: None)
    assert supports(model) == "this CPU has no integer units"
