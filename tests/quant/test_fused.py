"""The compiled loops against the same operations in PyTorch."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cabm.quant import fused
from cabm.quant.functional import (
    _mixture_gradient,
    assigned_codes,
    quantize_to_codes,
    rescale,
    selected_codes,
)

LAST = torch.channels_last
ALPHAS, LEVELS = torch.tensor([0.5, 1.5, 2.5]), torch.tensor([7.0, 31.0, 127.0])
PROBABILITIES = torch.tensor([[0.2, 0.3, 0.5], [0.9, 0.1, 0.0], [0.1, 0.1, 0.8]])
SELECTED = torch.tensor([2, 0, 1])
SHAPE = (3, 5, 7, 6)


def numbers(*shape: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * spread).to(memory_format=LAST)


def per_sample(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


@pytest.fixture
def in_torch(monkeypatch: pytest.MonkeyPatch):
    """Return a function that turns the compiled loops off."""
    return lambda: monkeypatch.setattr(fused, "_loops", lambda: None)


def test_loops_are_taken_where_they_apply():
    x = numbers(*SHAPE)
    assert fused.available(x)
    assert not fused.available(x.double())
    assert not fused.available(x.contiguous())
    assert not fused.available(x[:, :, :, ::2])
    assert not fused.available(x[:0])
    assert not fused.available(x.bfloat16())
    assert fused.available(x.bfloat16(), types=fused.TYPES)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    spread=st.floats(1e-3, 1e3),
    height=st.integers(1, 9),
    width=st.integers(1, 40),
    channels=st.integers(2, 20),
)
def test_codes_and_values_are_pytorchs_to_the_bit(seed, spread, height, width, channels):
    x = numbers(3, channels, height, width, seed=seed, spread=spread)
    codes = quantize_to_codes(x, ALPHAS, LEVELS)
    for code_type in fused.TYPES:
        found = fused.encode(x, ALPHAS, LEVELS, code_type)
        assert found.dtype == code_type
        assert torch.equal(found.float(), codes)
    assert torch.equal(fused.decode(x, ALPHAS, LEVELS), codes * per_sample(ALPHAS / LEVELS))
    one = fused.encode(x, ALPHAS[:1], 31.0, torch.float32)
    assert torch.equal(one, quantize_to_codes(x, ALPHAS[:1], 31.0))


def test_ties_bounds_and_what_is_not_a_number():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 7.4, 900.0, -900.0, torch.inf, torch.nan]).view(1, 2, 5, 1)
    x = x.to(memory_format=LAST)
    codes = fused.encode(x, torch.tensor([7.0]), 7.0, torch.bfloat16).float().flatten()
    assert codes[:9].tolist() == [0, 2, 2, 0, -2, 7, 7, -7, 7]
    assert codes[9].isnan()


@pytest.mark.parametrize("type_", fused.TYPES)
@pytest.mark.parametrize("one_for_all", [False, True])
def test_gradient_of_assigned_widths(type_, one_for_all):
    x = numbers(*SHAPE)
    x[0, 0, 0, 0], x[1, 1, 1, 1] = 0.5, -1.5  # on the clip counts as outside
    alpha = ALPHAS[:1] if one_for_all else ALPHAS
    slope = torch.tensor([0.7]) if one_for_all else torch.tensor([0.7, 1.3, 2.0])
    grad = numbers(*SHAPE, seed=1).to(type_)
    grad_x, clipped = fused.encode_gradient(grad, x, alpha, slope)
    outside = x.abs() >= per_sample(alpha)
    scaled = grad.float() * per_sample(slope)
    assert torch.equal(grad_x, scaled * ~outside)
    torch.testing.assert_close(clipped, (scaled * x.sign() * outside).sum((1, 2, 3)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("type_", fused.TYPES)
def test_gradient_of_the_mixture(type_):
    x, grad = numbers(*SHAPE), numbers(*SHAPE, seed=1).to(type_)
    slope = torch.tensor([0.7, 1.3, 2.0])
    found = fused.mixture_gradient(grad, x, ALPHAS, LEVELS, PROBABILITIES, slope)
    wanted = _mixture_gradient(grad.double(), x.double(), ALPHAS.double(), LEVELS, PROBABILITIES, slope)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format])
def test_whole_quantizers_agree_with_and_without_the_loops(decoded, layout, in_torch):
    def run(quantize, *parameters):
        x = numbers(*SHAPE).requires_grad_()
        inputs = [parameter.clone().requires_grad_() for parameter in parameters]
        with torch.autocast("cpu", torch.bfloat16):
            out = quantize(x, *inputs)
        upstream = numbers(*SHAPE, seed=1).to(out.dtype).contiguous(memory_format=layout)
        return [out, *torch.autograd.grad(out, [x, *inputs], upstream)]

    def assigned(x, alpha):
        return assigned_codes(x, alpha, LEVELS, decoded=decoded)

    def selected(x, alphas, probabilities):
        return selected_codes(x, alphas, probabilities, SELECTED, LEVELS, decoded=decoded)

    with_loops = run(assigned, ALPHAS) + run(selected, ALPHAS, PROBABILITIES)
    in_torch()
    for found, wanted in zip(
        with_loops, run(assigned, ALPHAS) + run(selected, ALPHAS, PROBABILITIES), strict=True
    ):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("type_", fused.TYPES)
@pytest.mark.parametrize("one_for_all", [False, True])
def test_rescaling(type_, one_for_all, in_torch):
    scale = per_sample(torch.tensor([0.3]) if one_for_all else torch.tensor([0.3, 1.7, 0.01]))

    def run():
        y, bias = numbers(*SHAPE).to(type_).requires_grad_(), torch.randn(5, generator=torch.manual_seed(2))
        bias.requires_grad_()
        out = rescale(y, scale, bias)
        return [out, *torch.autograd.grad(out, [y, bias], numbers(*SHAPE, seed=1))]

    with_loops = run()
    in_torch()
    for found, wanted in zip(with_loops, run(), strict=True):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_sums_do_not_depend_on_the_number_of_threads():
    x, grad = numbers(4, 16, 32, 32), numbers(4, 16, 32, 32, seed=1)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(fused.encode_gradient(grad, x, torch.tensor([1.0]), torch.tensor([1.0]))[1])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize("fault", ["is missing", "fails", "is wrong"])
def test_without_a_working_numba_pytorch_quantizes(fault, monkeypatch):
    def compiled(*, parallel):
        if fault == "fails":
            raise SystemError("initialization of _internal failed")
        return {"encode": lambda *arguments: None}

    if fault == "is missing":
        monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(fused, "_compiled", compiled)
    fused._loops.cache_clear()
    try:
        assert not fused.available(numbers(*SHAPE))
    finally:
        fused._loops.cache_clear()
