"""Layers of few bits, which Winograd multiplies as bytes."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine import compile_model, fused
from cabm.engine.blocks import Block
from cabm.engine.chains import Chain, residual_chain
from cabm.engine.fused import Kernel
from cabm.engine.grid import Grid, Storage
from cabm.engine.integer import IntegerModel
from cabm.engine.layer_numbers import CONVOLVE, KIND, NARROW_POSITIVE, NARROW_SIGNED, PRODUCTS, WIDE
from cabm.engine.onednn import Scaling
from cabm.engine.packing import BoundConv
from cabm.models import Backbone
from cabm.quant.functional import num_levels

from .helpers import calibrated, compiled, needs_units, photograph, row

CHANNELS = 64
WIDE_MODEL = {"num_features": CHANNELS, "num_blocks": 2}


@pytest.fixture(params=["winograd 512", "winograd 256"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Every form that multiplies few bits in a way of its own, as if it were the one chosen."""
    chosen = compiled(request.param)
    monkeypatch.setattr(fused, "compiled", lambda: chosen)
    return chosen


def run(kernel: Kernel, convs: Tensor, codes: Tensor, hidden: Grid, exponents: tuple[int, int]) -> Tensor:
    """Run a block of two narrow convolutions; all steps are 1, the residual's codes are -127..127."""
    source = Grid(127.0, 8, Storage.SHIFTED)
    bound = [
        BoundConv(kernel.pack(conv, shifted=grid is source, narrow=True), grid, Scaling(factor, None))
        for conv, grid, factor in zip(
            convs, (source, hidden), 2.0 ** -torch.tensor(exponents).view(2, 1), strict=True
        )
    ]
    block = Block(*bound, skip=source, residual=Grid(127.0, 8, Storage.SIGNED))
    return residual_chain(kernel, [block]).run(codes.float()).double()


def hidden_grid(bits: int, *, unsigned: bool) -> Grid:
    """Return the grid of step 1 of hidden codes."""
    return Grid(float(num_levels(bits, unsigned=unsigned)), bits, Storage.POSITIVE, unsigned)


def direct(convs: Tensor, codes: Tensor, highest: int, exponents: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the hidden codes and the result in double precision, without Winograd."""
    first, second = (2.0**-each for each in exponents)
    hidden = (F.conv2d(codes.double(), convs[0].double(), padding=1) * first).round().clamp(0, highest)
    residual = (F.conv2d(hidden, convs[1].double(), padding=1) * second).round().clamp(-127, 127)
    return hidden, residual + codes


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 7), (5, 24), (4, 25), (3, 49)])
@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_random_codes_are_exact(kernel: Kernel, bits: int, unsigned: bool, height: int, width: int) -> None:
    n, grid = num_levels(bits), hidden_grid(bits, unsigned=unsigned)
    generator = torch.Generator().manual_seed(height)
    convs = torch.randint(-n, n + 1, (2, CHANNELS, CHANNELS, 3, 3), generator=generator)
    codes = torch.randint(-n, n + 1, (1, CHANNELS, height, width), generator=generator)
    exponents = bits, bits
    found = run(kernel, convs, codes, grid, exponents)
    hidden, wanted = direct(convs, codes, grid.levels, exponents)
    assert torch.equal(found, wanted)
    assert height * width == 1 or hidden.unique().numel() == grid.levels + 1


def patterns(count: int) -> Tensor:
    """Return (count^2,6,6) of -1 and 1: products of two rows, each one of ``count`` patterns of signs."""
    rows = torch.tensor(
        [[1, 1, 1, 1, 1, 1], [1, -1, 1, -1, 1, -1], [1, 1, -1, -1, 1, 1], [1, -1, -1, 1, 1, -1]]
    )[:count]
    return torch.einsum("ay,bx->abyx", rows, rows).flatten(0, 1)


@pytest.mark.parametrize("pattern", range(16))
def test_the_largest_sums_are_exact(kernel: Kernel, pattern: int) -> None:
    """All inputs and weights at their ends, in patterns that make the transforms as large as can be."""
    outputs = torch.arange(CHANNELS)
    kernels = 7 * patterns(2)[outputs % 4, :3, :3] * (1 - 2 * (outputs // 4 % 2)).view(-1, 1, 1)
    convs = kernels.view(1, -1, 1, 3, 3).repeat(2, 1, CHANNELS, 1, 1)
    codes = 7 * patterns(4)[pattern].repeat(1, CHANNELS, 1, 1)
    exponents = 9, 9
    found = run(kernel, convs, codes, hidden_grid(4, unsigned=True), exponents)
    hidden, wanted = direct(convs, codes, 15, exponents)
    assert torch.equal(found, wanted)
    assert hidden.min() == 0 < 5 < hidden.max()


def products(chain: Chain) -> list[int]:
    """Return how each convolution multiplies."""
    return [int(step[PRODUCTS]) for step in chain._steps if step[KIND] == CONVOLVE]


@cache
def model_of_all_widths(after_relu: str) -> tuple[Backbone, IntegerModel]:
    """Return a model whose weights are as wide as its codes, and the engine that runs it layer by layer."""
    options = {"weight_bits": "same", "search_space": (2, 3, 4, 5, 6, 7, 8), "after_relu": after_relu}
    model = calibrated("edsr", options=WIDE_MODEL, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "compiled", lambda: None)
        return model, compile_model(model)


@needs_units
@pytest.mark.parametrize("after_relu", ["symmetric", "unsigned"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, "mixed"])
def test_rows_choose_by_their_bits_and_equal_layer_by_layer(
    kernel: Kernel, bits: int | str, after_relu: str
) -> None:
    model, layered = model_of_all_widths(after_relu)
    engine = compile_model(model)
    tiles, rows = photograph(13, 18, count=2, seed=3), row(model, bits, count=2)
    found = engine.run(tiles, rows, dtype=torch.float32)
    assert torch.equal(found, layered.run(tiles, rows, dtype=torch.float32))
    for each in rows.tolist():
        narrow = [NARROW_SIGNED, NARROW_POSITIVE] * WIDE_MODEL["num_blocks"]
        wanted = [kind if width <= 4 else WIDE for kind, width in zip(narrow, each, strict=True)]
        assert products(engine._program.plan(tuple(each))) == wanted


@pytest.mark.parametrize(
    ("weight_bits", "bits", "narrow"), [(8, 4, False), (4, 4, True), (3, 4, True), (4, 6, False)]
)
def test_both_inputs_and_weights_must_be_narrow(
    kernel: Kernel, weight_bits: int, bits: int, narrow: bool
) -> None:
    model = calibrated("edsr", options=WIDE_MODEL, weight_bits=weight_bits)
    found = products(compile_model(model)._program.plan((bits,) * model.num_adaptive))
    assert WIDE not in found if narrow else set(found) == {WIDE}


@pytest.mark.parametrize("name", ["matrix 512", "direct 512", "direct 256"])
def test_other_forms_have_one_way_to_multiply(name: str) -> None:
    assert compiled(name).form.narrow_bits == 0
