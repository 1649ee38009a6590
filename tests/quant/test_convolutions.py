"""Quantized convolutions: codes, gradients, and weights at the activations' bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cabm.quant import Quantized
from cabm.quant.functional import assigned_codes, weight_codes
from cabm.quant.layers import QuantConv2d, QuantConvTranspose2d
from cabm.quant.levels import num_levels


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Quantize as the released code does: round(w n/m) m/n, where m is max|w| + 1e-8."""
    n = 2 ** (bits - 1) - 1
    largest = weight.abs().max() + 1e-8
    return torch.round(weight * n / largest) * largest / n


def quantized(x: torch.Tensor, bits: list[int]) -> Quantized:
    """Quantize each sample at its own width; all clip values differ."""
    alpha = torch.linspace(0.8, 1.4, len(bits), dtype=x.dtype)
    levels = torch.tensor([num_levels(b) for b in bits], dtype=x.dtype)
    return Quantized(
        lambda decoded: assigned_codes(x, alpha, levels, decoded=decoded),
        (alpha / levels).view(-1, 1, 1, 1),
        torch.tensor(bits),
    )


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(2, 8), seed=st.integers(0, 1000), size=st.floats(1e-3, 1e3))
def test_properties_of_weight_codes(bits, seed, size):
    weight = randn(4, 3, 3, 3, seed=seed, dtype=torch.float32) * size
    codes, scale = weight_codes(weight, bits)
    assert torch.equal(codes, codes.round())
    assert codes.abs().max() == num_levels(bits)
    assert (codes * scale - weight).abs().max() <= 0.51 * scale


def test_weights_of_zero_have_codes_of_zero():
    codes, scale = weight_codes(torch.zeros(2, 2, 3, 3), 8)
    assert torch.equal(codes, torch.zeros(2, 2, 3, 3))
    assert scale > 0


def test_gradient_passes_weight_codes_straight_through():
    weight = randn(4, 3, 3, 3).requires_grad_()
    upstream = randn(4, 3, 3, 3, seed=1)
    codes, scale = weight_codes(weight, 4)
    assert not scale.requires_grad
    (codes * scale).backward(upstream)
    torch.testing.assert_close(weight.grad, upstream)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("weight_bits", [8, 4])
def test_convolving_codes_is_convolving_values(bias, groups, weight_bits):
    conv = QuantConv2d(4, 6, 3, padding=1, bias=bias, groups=groups, weight_bits=weight_bits).double()
    x = quantized(randn(3, 4, 5, 6), [4, 8, 6])
    expected = F.conv2d(x.values(), rounded(conv.weight, weight_bits), conv.bias, padding=1, groups=groups)
    torch.testing.assert_close(conv(x), expected, rtol=1e-6, atol=1e-6)


def test_an_unquantized_input_meets_quantized_weights():
    conv = QuantConv2d(4, 6, 3, padding=1).double()
    x = randn(3, 4, 5, 6)
    torch.testing.assert_close(
        conv(x), F.conv2d(x, rounded(conv.weight, 8), conv.bias, padding=1), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("bits", [[8, 4, 6, 4, 8], [4, 4, 4, 4, 4], [8, 6, 4, 2, 3]])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_at_the_activations_bits_equal_one_convolution_per_sample(bits, bias):
    conv = QuantConv2d(4, 6, 3, padding=1, bias=bias, weight_bits="same").double()
    alone = QuantConv2d(4, 6, 3, padding=1, bias=bias, weight_bits="same").double()
    alone.load_state_dict(conv.state_dict())
    x = randn(5, 4, 5, 6).requires_grad_()
    x_alone = x.detach().clone().requires_grad_()
    upstream = randn(5, 6, 5, 6, seed=1)

    together = conv(quantized(x, bits))
    together.backward(upstream)

    each, inputs = [], quantized(x_alone, bits)
    for sample, width in enumerate(bits):
        one = slice(sample, sample + 1)
        codes, scale = weight_codes(alone.weight, width)
        value = inputs.codes[one] * inputs.scale[one]
        each.append(F.conv2d(value, codes * scale, alone.bias, padding=1))
    torch.cat(each).backward(upstream)

    torch.testing.assert_close(together, torch.cat(each))
    torch.testing.assert_close(x.grad, x_alone.grad)
    torch.testing.assert_close(conv.weight.grad, alone.weight.grad)
    if bias:
        torch.testing.assert_close(conv.bias.grad, alone.bias.grad)


def test_weights_at_the_activations_bits_take_one_pass_per_width(monkeypatch):
    """Not one per sample: 12 samples of 3 widths are 3 convolutions."""
    calls = []
    convolve = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, *rest: (calls.append(len(x)), convolve(x, *rest))[1])
    QuantConv2d(2, 2, 3, padding=1, weight_bits="same").double()(
        quantized(randn(12, 2, 4, 4), [4, 8, 6] * 4)
    )
    assert calls == [4, 4, 4]


def test_same_at_a_fixed_width_takes_that_width():
    conv = QuantConv2d(2, 3, 3, padding=1, weight_bits="same").double()
    x = quantized(randn(2, 2, 4, 4), [8, 8])
    fixed = Quantized(lambda decoded: x.values() if decoded else x.codes, x.scale, 8)
    torch.testing.assert_close(conv(fixed), conv(x))


@pytest.mark.skipif(
    not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()),
    reason="no units for bfloat16: how sums are kept is the library's choice",
)
def test_codes_lose_nothing_in_bfloat16():
    """Products of codes are summed exactly: bfloat16 holds both factors, float32 the sums."""
    x = quantized(randn(2, 8, 6, 6, dtype=torch.float32), [8, 8])
    codes, _ = weight_codes(randn(8, 8, 3, 3, seed=1, dtype=torch.float32), 8)
    assert torch.equal(x.codes.bfloat16().float(), x.codes)
    assert torch.equal(codes.bfloat16().float(), codes)
    exact = F.conv2d(x.codes.double(), codes.double(), padding=1)
    fast = F.conv2d(x.codes.bfloat16(), codes.bfloat16(), padding=1)
    # the one rounding is that of the result
    assert torch.equal(fast, exact.to(torch.bfloat16))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_transposed_convolution_of_codes_is_one_of_values(scale):
    conv = QuantConvTranspose2d(4, 3, 17, stride=scale, padding=8).double()
    x = quantized(randn(2, 4, 5, 7), [8, 8])
    size = [5 * scale, 7 * scale]
    expected = F.conv_transpose2d(
        x.values(), rounded(conv.weight, 8), conv.bias, scale, padding=8, output_padding=scale - 1
    )
    found = conv(x, output_size=size)
    assert list(found.shape[2:]) == size
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    weight = rounded(conv.weight, 8)
    plain = F.conv_transpose2d(x.values(), weight, conv.bias, scale, padding=8, output_padding=scale - 1)
    torch.testing.assert_close(conv(x.values(), output_size=size), plain, rtol=1e-6, atol=1e-6)
