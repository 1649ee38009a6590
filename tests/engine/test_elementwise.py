from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cabm.engine import elementwise
from cabm.engine.grid import Grid, Storage
from cabm.quant.functional import quantize_to_codes

WAYS = ["numba", "torch"]
CLIPS = st.floats(2.0**-6, 128, width=32)
grids = st.builds(Grid, CLIPS, st.sampled_from([4, 6, 8]), st.sampled_from(Storage))


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(elementwise, "compiled", lambda: None)
    return request.param


def values(seed: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 5, 4, 7, generator=generator) * spread
    return x.contiguous(memory_format=torch.channels_last)


def simulated_codes(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    codes = quantize_to_codes(x, torch.tensor([grid.alpha]), grid.levels)
    return codes.clamp(min=grid.low) + grid.zero


@pytest.mark.parametrize("slope", [1.0, 0.05, 0.25])
def test_encode_gives_the_simulations_codes(way: str, slope: float) -> None:
    @settings(deadline=None)
    @given(grid=grids, seed=st.integers(0, 99), spread=st.floats(0.01, 100))
    @example(grid=Grid(101.5891342163086, 8, Storage.POSITIVE), seed=90, spread=67.57645741463686)  # a tie
    def check(grid: Grid, seed: int, spread: float) -> None:
        x = values(seed, spread)
        codes = elementwise.encode(x, grid, slope=slope)
        activated = torch.nn.functional.leaky_relu(x, slope)
        assert codes.dtype == elementwise.byte_type(grid)
        assert codes.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(codes.float(), simulated_codes(activated, grid))

    check()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32])
def test_sums_and_their_codes_are_the_simulations(way: str, dtype: torch.dtype) -> None:
    @settings(deadline=None)
    @given(
        b_grid=st.builds(
            Grid,
            CLIPS,
            st.sampled_from([4, 8]),
            st.sampled_from([Storage.POSITIVE, Storage.SHIFTED]),
        ),
        out=grids,
        seed=st.integers(0, 99),
    )
    def check(b_grid: Grid, out: Grid, seed: int) -> None:
        a = values(seed, 50.0)
        a_scale = np.float32(1)
        if dtype == torch.int8:
            a, a_scale = a.clamp(-127, 127).to(torch.int8), np.float32(0.037)
        b = (values(seed + 1, 60.0).abs().clamp(max=127)).to(torch.uint8)
        kept = b.clone()
        total = a.float() * torch.tensor(a_scale) + (b.float() - b_grid.zero) * torch.tensor(b_grid.scale)
        assert torch.equal(elementwise.add_decode(a, a_scale, b, b_grid), total)
        found = elementwise.add_encode(a, a_scale, b, b_grid, out)
        assert torch.equal(found.float(), simulated_codes(total, out))
        assert torch.equal(b, kept)

    check()


def test_rounds_half_to_even(way: str) -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 200.0, -200.0]).view(1, 1, 1, 7)
    grid = Grid(127.0, 8, Storage.SIGNED)
    assert elementwise.encode(x, grid).flatten().tolist() == [0, 2, 2, 0, -2, 127, -127]


@pytest.mark.parametrize("fault", ["is missing", "fails", "is wrong"])
def test_a_broken_numba_is_not_used(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_kernel(kernel: object) -> object:
        if fault == "fails":
            raise SystemError("initialization of _internal failed")
        return lambda *arguments: None

    if fault == "is missing":
        monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(elementwise, "jit", compile_kernel)
    elementwise.compiled.cache_clear()
    try:
        assert elementwise.compiled() is None
    finally:
        elementwise.compiled.cache_clear()
