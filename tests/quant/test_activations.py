"""Activation quantizers: values against torch's own, gradients against closed forms in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cabm.quant import AlphaObserver, PrecisionContext, Quantized
from cabm.quant.functional import (
    assigned_codes,
    channel_deviation,
    quantize_to_codes,
    selected_codes,
)
from cabm.quant.layers import AssignedActivation, FloatActivation, PamsActivation, SelectedActivation
from cabm.quant.levels import num_levels

SPACE = (4, 6, 8)
LEVELS = torch.tensor([7.0, 31.0, 127.0], dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def per_sample(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


def round_trip(x: torch.Tensor, alpha: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Quantize as the PAMS paper writes it: alpha/n round(clip(x, -alpha, alpha)/alpha n), per sample."""
    alpha, levels = per_sample(alpha), per_sample(levels)
    clipped = torch.minimum(torch.maximum(x, -alpha), alpha)
    return alpha / levels * torch.round(clipped / alpha * levels)


# values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
def test_values_are_torchs_fake_quantization(bits):
    """Zero tolerance, even at ties: the step is a power of two, and x are multiples of a quarter step."""
    levels = num_levels(bits)
    step = 2.0**-3
    x = (torch.arange(-5 * levels, 5 * levels + 1) * step / 4).view(1, 1, 1, -1)
    codes = quantize_to_codes(x, torch.tensor([levels * step]), levels)
    expected = torch.fake_quantize_per_tensor_affine(x, step, 0, -levels, levels)
    assert torch.equal(codes * step, expected)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    alpha=st.floats(1e-3, 1e3),
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
)
def test_properties_of_codes(bits, alpha, values):
    levels = num_levels(bits)
    x = torch.tensor(values).view(1, 1, 1, -1)
    alphas, n = torch.tensor([alpha]), torch.tensor([float(levels)])
    codes = quantize_to_codes(x, alphas, n)
    step = alphas / n
    assert torch.equal(codes, codes.round())
    assert codes.abs().max() <= levels
    assert torch.equal(quantize_to_codes(-x, alphas, n), -codes)
    assert torch.equal(quantize_to_codes(codes * step, alphas, n), codes)
    inside = x.abs() <= alphas
    error = (codes * step - x).abs()[inside]
    assert bool((error <= 0.5001 * step + 1e-6 * alpha).all())
    order = x.flatten().argsort()
    assert bool((codes.flatten()[order].diff() >= 0).all())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("autocast", [False, True])
def test_codes_under_bfloat16_autocast_are_the_same_numbers(memory_format, autocast):
    x = (randn(3, 4, 5, 6) * 2).float().to(memory_format=memory_format)
    alpha, levels = torch.tensor([0.5, 1.5, 2.5]), LEVELS.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        codes = assigned_codes(x, alpha, levels)
    assert codes.dtype == (torch.bfloat16 if autocast else torch.float32)
    exact = torch.round(
        x.double().clamp(-per_sample(alpha), per_sample(alpha)) * per_sample(levels / alpha)
    )
    assert torch.equal(codes.double(), exact)


# gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_of_assigned_widths_is_the_closed_form(memory_format):
    quantizer = AssignedActivation(SPACE, position=1).double()
    with torch.no_grad():
        quantizer.alpha.copy_(torch.tensor([0.4, 0.9, 1.3]))
    bits = torch.tensor([[0, 8], [0, 4], [0, 6], [0, 4]])
    index = torch.tensor([2, 0, 1, 0])
    x = randn(4, 3, 5, 6).to(memory_format=memory_format)
    alpha, levels = quantizer.alpha.detach()[index], LEVELS[index]
    x[1, 0, 0, 0], x[1, 0, 0, 1] = alpha[1], -alpha[1]  # on the clip counts as clipped
    x.requires_grad_()
    upstream = randn(4, 3, 5, 6, seed=1)

    output = quantizer(x, PrecisionContext(bits=bits))
    output.values().backward(upstream)

    clipped = x.detach().abs() >= per_sample(alpha)
    torch.testing.assert_close(output.values(), round_trip(x.detach(), alpha, levels))
    assert output.bits.tolist() == [8, 4, 6, 4]
    torch.testing.assert_close(x.grad, torch.where(clipped, 0.0, upstream))
    of_sample = (upstream * x.detach().sign() * clipped).sum(dim=(1, 2, 3))
    expected = torch.stack([of_sample[index == k].sum() for k in range(3)])
    torch.testing.assert_close(quantizer.alpha.grad, expected)
    assert (expected != 0).all()


def test_gradient_of_one_width_is_the_closed_form():
    quantizer = PamsActivation(8).double()
    with torch.no_grad():
        quantizer.alpha.fill_(0.7)
    x = randn(4, 3, 5, 6).requires_grad_()
    upstream = randn(4, 3, 5, 6, seed=1)
    output = quantizer(x, PrecisionContext())
    output.values().backward(upstream)
    clipped = x.detach().abs() >= 0.7
    alpha, levels = torch.full((4,), 0.7, dtype=torch.float64), torch.full((4,), 127.0, dtype=torch.float64)
    torch.testing.assert_close(output.values(), round_trip(x.detach(), alpha, levels))
    torch.testing.assert_close(x.grad, torch.where(clipped, 0.0, upstream))
    torch.testing.assert_close(quantizer.alpha.grad, (upstream * x.detach().sign())[clipped].sum().view(1))


def selector_case(memory_format=torch.contiguous_format):
    """Return a selector whose samples choose different widths, and its input."""
    quantizer = SelectedActivation(SPACE, position=0, channels=3).double()
    with torch.no_grad():
        quantizer.alpha.copy_(torch.tensor([0.4, 0.9, 1.3]))
        quantizer.selector.weight.copy_(randn(3, 5, seed=13))
        quantizer.selector.bias.copy_(randn(3, seed=4))
    spread = torch.tensor([0.2, 1.0, 2.0, 3.0], dtype=torch.float64)
    x = (randn(4, 3, 5, 6) * per_sample(spread)).to(memory_format=memory_format).requires_grad_()
    gradient = randn(4, 2, seed=5).abs()
    features = torch.cat([gradient, x.detach().flatten(2).std(dim=2, unbiased=True)], dim=1)
    scores = features @ quantizer.selector.weight.detach().T + quantizer.selector.bias.detach()
    return quantizer, x, gradient, features, scores


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_of_a_selected_width_is_that_of_the_mixture(memory_format):
    quantizer, x, gradient, features, scores = selector_case(memory_format)
    upstream = randn(4, 3, 5, 6, seed=1)
    context = PrecisionContext(gradient=gradient)
    output = quantizer(x, context)
    output.values().backward(upstream)

    chosen = scores.argmax(dim=1)
    assert sorted(chosen.unique().tolist()) == [0, 1, 2]
    alphas, values = quantizer.alpha.detach(), x.detach()
    torch.testing.assert_close(output.values(), round_trip(values, alphas[chosen], LEVELS[chosen]))
    assert context.chosen[0].tolist() == [SPACE[k] for k in chosen]

    odds = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
    grad_x = torch.zeros_like(values)
    grad_alpha = torch.zeros(3, dtype=torch.float64)
    grad_odds = torch.zeros(4, 3, dtype=torch.float64)
    for k in range(3):
        clipped = values.abs() >= alphas[k]
        grad_x += per_sample(odds[:, k]) * upstream * ~clipped
        grad_alpha[k] = (per_sample(odds[:, k]) * upstream * values.sign() * clipped).sum()
        quantized = round_trip(values, alphas[k].expand(4), LEVELS[k].expand(4))
        grad_odds[:, k] = (upstream * quantized).sum(dim=(1, 2, 3))
    torch.testing.assert_close(x.grad, grad_x)
    torch.testing.assert_close(quantizer.alpha.grad, grad_alpha)
    grad_scores = odds * (grad_odds - (odds * grad_odds).sum(dim=1, keepdim=True))  # softmax
    torch.testing.assert_close(quantizer.selector.bias.grad, grad_scores.sum(dim=0))
    torch.testing.assert_close(quantizer.selector.weight.grad, grad_scores.T @ features)


def test_gradient_of_the_bit_cost_is_that_of_the_expected_bits():
    quantizer, x, gradient, features, scores = selector_case()
    context = PrecisionContext(gradient=gradient)
    quantizer(x, context)
    weights = randn(4, seed=6)
    (context.bit_cost()[:, 0] * weights).sum().backward()

    widths = torch.tensor(SPACE, dtype=torch.float64)
    odds = scores.softmax(dim=1)
    expected_bits = odds @ widths
    used = widths[scores.argmax(dim=1)]
    torch.testing.assert_close(context.bit_cost()[:, 0], used / expected_bits)
    # d (sum p b) / d score_k = p_k (b_k - sum p b); the denominator and the chosen bits are constants
    grad_scores = (weights / expected_bits)[:, None] * odds * (widths - expected_bits[:, None])
    torch.testing.assert_close(quantizer.selector.bias.grad, grad_scores.sum(dim=0))
    torch.testing.assert_close(quantizer.selector.weight.grad, grad_scores.T @ features)
    assert x.grad is None  # the statistics are detached
    assert quantizer.alpha.grad is None


def test_a_certain_selector_gives_the_gradient_of_the_assigned_width():
    x = randn(2, 3, 4, 5)
    upstream = randn(2, 3, 4, 5, seed=1)
    alphas = torch.tensor([0.4, 0.9, 1.3], dtype=torch.float64)
    chosen = torch.tensor([2, 0])
    certain = torch.eye(3, dtype=torch.float64)[chosen]
    gradients = []
    for selected in (True, False):
        a, v = alphas.clone().requires_grad_(), x.clone().requires_grad_()
        if selected:
            codes = selected_codes(v, a, certain, chosen, LEVELS)
        else:
            codes = assigned_codes(v, a[chosen], LEVELS[chosen])
        (codes * per_sample((alphas / LEVELS)[chosen])).backward(upstream)
        gradients.append((codes.detach(), v.grad, a.grad))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("space", [(4, 8), (2, 4, 6, 8), (8,)])
def test_search_spaces_of_any_length_have_the_mixtures_gradient(space):
    """Compare with the straight-through formula in autograd: hard + (soft - sg(soft))."""
    levels = torch.tensor([float(num_levels(bits)) for bits in space], dtype=torch.float64)
    count = len(space)
    x, upstream = randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1)
    chosen = torch.arange(3) % count

    def leaf(value):
        return value.clone().requires_grad_()

    ours = leaf(x), leaf(torch.linspace(0.5, 1, count).double()), leaf(randn(3, count, seed=2).softmax(1))
    theirs = [leaf(value.detach()) for value in ours]
    codes = selected_codes(ours[0], ours[1], ours[2], chosen, levels)
    (codes * per_sample((ours[1].detach() / levels)[chosen])).backward(upstream)

    v, alphas, odds = theirs
    soft = torch.zeros_like(v)
    for k in range(count):
        clipped = torch.where(v.abs() < alphas[k], v, alphas[k] * v.detach().sign())
        hard = round_trip(v.detach(), alphas[k].detach().expand(3), levels[k].expand(3))
        soft = soft + per_sample(odds[:, k]) * (clipped + (hard - clipped).detach())
    soft.backward(upstream)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_gradients_under_autocast_stay_close_to_the_exact_ones():
    x, upstream = randn(4, 3, 8, 8).float(), randn(4, 3, 8, 8, seed=1).bfloat16().float()
    alphas, odds = torch.tensor([0.4, 0.9, 1.3]), randn(4, 3, seed=2).softmax(1).float()
    chosen, levels = torch.tensor([0, 1, 2, 1]), LEVELS.float()
    results = []
    for enabled in (False, True):
        leaves = [value.clone().requires_grad_() for value in (x, alphas, odds)]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            codes = selected_codes(*leaves, chosen, levels)
        codes.backward(upstream.to(codes.dtype))
        results.append([leaf.grad for leaf in leaves])
    for exact, found in zip(*results, strict=True):
        torch.testing.assert_close(found, exact, rtol=2e-2, atol=1e-2 * exact.abs().max().item())


# the rest --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_channel_deviation_is_the_unbiased_one(memory_format):
    x = (randn(2, 3, 5, 7) * 3 + 100).float().to(memory_format=memory_format)
    torch.testing.assert_close(channel_deviation(x), x.double().flatten(2).std(dim=2).float())


@pytest.mark.parametrize(
    "quantizer",
    [PamsActivation(8), SelectedActivation(SPACE, 0, 3), AssignedActivation(SPACE, 0), FloatActivation()],
)
def test_under_observation_the_input_passes(quantizer):
    x, observer = randn(2, 3, 4, 4).float(), AlphaObserver()
    context = PrecisionContext(observer=observer)
    assert quantizer(x, context) is x
    assert not context.chosen
    if observer.modules():
        peaks = x.abs().amax(dim=(1, 2, 3)).double()
        assert observer.mean_peak(quantizer) == pytest.approx(peaks.mean().item())
    else:
        assert isinstance(quantizer, FloatActivation)


def test_widths_outside_the_search_space_are_refused():
    quantizer = AssignedActivation(SPACE, position=2)
    with pytest.raises(ValueError, match=r"bits \[4, 5\] at position 2 .* search space \[4, 6, 8\]"):
        quantizer(randn(2, 1, 2, 2).float(), PrecisionContext(bits=torch.tensor([[8, 8, 4], [8, 8, 5]])))


def test_quantized_values_are_codes_times_scale():
    output = PamsActivation(4)(randn(2, 3, 4, 4).float(), PrecisionContext())
    assert isinstance(output, Quantized)
    assert torch.equal(output.values(), output.codes * output.scale)
    assert output.bits == 4
    assert not output.scale.requires_grad


def test_repr_names_the_choice():
    assert repr(PamsActivation(6)) == "PamsActivation(bits=6, unsigned=False)"
    assert "search_space=(4, 6, 8), position=3" in repr(AssignedActivation(SPACE, 3))
