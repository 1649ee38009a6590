"""Residual branches that 0 bits skip: the mixture's gradients against autograd, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.models.edsr import ResidualBlock
from cabm.quant import Precision, PrecisionContext, Quantizers, values
from cabm.quant.branch import unequal_skips
from cabm.quant.layers import SelectedActivation

SPACE = (0, 4, 6, 8)
FEATURES, BATCH = 3, 16


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block_of(kind: str = "cadyq", space: tuple[int, ...] = SPACE) -> ResidualBlock:
    """Return a block of EDSR in float64, whose selectors are undecided enough to choose every width."""
    torch.manual_seed(0)
    block = ResidualBlock(FEATURES, 1.0, Quantizers(Precision(kind, space))).double()
    with torch.no_grad():
        for number, act in enumerate((block.act1, block.act2)):
            act.alpha.copy_(torch.linspace(0.7, 1.1, act.alpha.numel()))
            if kind == "cadyq":
                act.selector.weight.copy_(normal(*act.selector.weight.shape, seed=number))
                act.selector.bias.copy_(torch.linspace(0, 0.6, len(act.selector.bias)))
        block.act3.alpha.fill_(0.2)
    return block


def case() -> tuple[Tensor, Tensor]:
    """Return inputs of different contrasts, and numbers in the place of image gradients."""
    x = normal(BATCH, FEATURES, 5, 6, seed=20) * torch.linspace(0.2, 2, BATCH).view(-1, 1, 1, 1).double()
    return x.requires_grad_(), 2 * normal(BATCH, 2, seed=21)


def straight_through(forward: Tensor, backward: Tensor) -> Tensor:
    return forward.detach() + backward - backward.detach()


def fake_quantized(x: Tensor, alpha: Tensor, bits: int) -> Tensor:
    """METHOD section 1: alpha/n round(clip(x, -alpha, alpha)/alpha n), straight-through."""
    levels = 2 ** (bits - 1) - 1
    clipped = torch.minimum(torch.maximum(x, -alpha), alpha)
    return straight_through(alpha / levels * torch.round(clipped / alpha * levels), clipped)


def written_out(
    act: SelectedActivation, x: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return value, p_0, the bits expected of the other widths, and the index chosen of all widths."""
    deviation = x.detach().std(dim=(2, 3))
    odds = act.selector(torch.cat([gradient, deviation], dim=1)).softmax(dim=1)
    zero = odds[:, 0] if act.search_space[0] == 0 else torch.zeros(len(x), dtype=x.dtype)
    widths = [bits for bits in act.search_space if bits]
    positive = odds[:, -len(widths) :] / (1 - zero)[:, None]
    each = torch.stack(
        [fake_quantized(x, alpha, bits) for alpha, bits in zip(act.alpha, widths, strict=True)]
    )
    mixture = torch.einsum("bk,kbchw->bchw", positive, each)
    used = each[positive.argmax(dim=1), torch.arange(len(x))]
    expected = positive @ torch.tensor(widths, dtype=x.dtype)
    return straight_through(used, mixture), zero, expected, odds.argmax(dim=1)


def test_gradients_are_those_of_the_written_out_mixture():
    block, (x, gradient) = block_of(), case()
    weights, prices = normal(BATCH, FEATURES, 5, 6, seed=30), normal(BATCH, 2, seed=31)

    context = PrecisionContext(gradient=gradient)
    output, _ = block(x, context)
    chosen = torch.stack(context.chosen, dim=1)
    assert set(chosen[:, 0].tolist()) == set(SPACE), "the case must see every width"
    assert chosen[:, 1].eq(0).equal(chosen[:, 0].eq(0))
    ((output * weights).sum() + (context.bit_cost() * prices).sum()).backward()
    found = {name: value.grad for name, value in block.named_parameters()} | {"x": x.grad}

    block.zero_grad()
    x.grad = None
    opened, zero, expected1, index = written_out(block.act1, x, gradient)
    hidden, _, expected2, _ = written_out(block.act2, F.relu(block.conv1(opened)), gradient)
    residual = values(block.act3(block.conv2(hidden), PrecisionContext()))
    mixture = zero.view(-1, 1, 1, 1) * x + (1 - zero).view(-1, 1, 1, 1) * (opened + residual)
    skipped = (index == 0).view(-1, 1, 1, 1)
    wanted = straight_through(torch.where(skipped, x, opened + residual), mixture)
    # sg(expected) in the denominator: the cost's gradient is that of the logarithm
    bits = torch.stack([(1 - zero) * expected1, (1 - zero) * expected2], dim=1)
    ((wanted * weights).sum() + (bits.log() * prices).sum()).backward()

    torch.testing.assert_close(output, wanted)
    torch.testing.assert_close(context.bit_cost(), chosen / bits)
    for name, value in (*block.named_parameters(), ("x", x)):
        assert value.grad.abs().max() > 0, name
        torch.testing.assert_close(found[name], value.grad, rtol=1e-9, atol=1e-10, msg=name)


def test_inference_computes_the_same_for_the_samples_that_run_alone():
    block, (x, gradient) = block_of(), case()
    context, quiet = PrecisionContext(gradient=gradient), PrecisionContext(gradient=gradient)
    seen: list[int] = []
    hooks = [
        conv.register_forward_hook(lambda *a: seen.append(len(a[2]))) for conv in (block.conv1, block.conv2)
    ]
    output, feature = block(x, context)
    with torch.no_grad():
        found, part = block(x, quiet)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found, output.detach())
    torch.testing.assert_close(part, feature.detach())
    assert torch.equal(torch.stack(quiet.chosen), torch.stack(context.chosen))
    torch.testing.assert_close(quiet.bit_cost(), context.bit_cost().detach())
    computed = int((context.chosen[0] > 0).sum())
    assert 0 < computed < BATCH
    # the training run asks the branch of all samples, since the selector learns from it
    assert seen == [BATCH, BATCH, computed, computed]


@pytest.mark.parametrize("sure_of", range(len(SPACE)))
def test_sure_selectors_have_finite_costs_and_gradients(sure_of):
    """Probabilities underflow in float32; nothing is divided by them."""
    block, (x, gradient) = block_of().float(), case()
    with torch.no_grad():
        block.act1.selector.bias[sure_of] += 1e4
    context = PrecisionContext(gradient=gradient.float())
    output, _ = block(x.float(), context)
    assert set(context.chosen[0].tolist()) == {SPACE[sure_of]}
    (output.square().sum() + context.bit_cost().sum()).backward()
    assert bool(context.bit_cost().isfinite().all())
    assert all(bool(value.grad.isfinite().all()) for value in block.parameters())
    if sure_of == 0:
        assert bool((context.bit_cost() == 0).all())
        torch.testing.assert_close(output, x.float())


def test_given_bits_have_the_gradients_of_the_samples_that_run():
    block, (x, _) = block_of("cabm"), case()
    bits = torch.tensor(SPACE)[torch.arange(BATCH) % 4][:, None].expand(-1, 2)
    weights = normal(BATCH, FEATURES, 5, 6, seed=40)
    output, feature = block(x, PrecisionContext(bits=bits))
    (output * weights).sum().backward()
    found = {name: value.grad for name, value in block.named_parameters()} | {"x": x.grad}

    block.zero_grad()
    x.grad = None
    dense, runs = block_of("cabm", SPACE[1:]), bits[:, 0] > 0
    part, _ = dense(x[runs], PrecisionContext(bits=bits[runs]))
    ((part * weights[runs]).sum() + (x[~runs] * weights[~runs]).sum()).backward()

    torch.testing.assert_close(output[runs], part)
    assert torch.equal(output[~runs], x[~runs])
    assert torch.equal(feature[~runs], torch.zeros_like(feature[~runs]))
    for name, value in (*dense.named_parameters(), ("x", x)):
        torch.testing.assert_close(found[name], value.grad, msg=name)


def test_nothing_runs_where_every_sample_is_skipped():
    block, (x, _) = block_of("cabm"), case()
    ran = []
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *arguments: ran.append(arguments))
    context = PrecisionContext(bits=torch.zeros(BATCH, 2, dtype=torch.int64))
    output, feature = block(x, context)
    assert torch.equal(output, x) and feature.shape == x.shape and not feature.any()
    assert [used.tolist() for used in context.chosen] == [[0] * BATCH] * 2
    assert not ran


def test_a_width_of_zero_has_no_clip_value_and_no_second_place():
    block = block_of()
    assert block.act1.alpha.shape == block.act2.alpha.shape == (3,)
    assert block.act1.selector.out_features == 4
    assert block.act2.selector.out_features == 3
    assert block.act2.search_space == SPACE[1:]


@pytest.mark.parametrize(
    ("rows", "fits"),
    [
        ([[4, 6, 8, 4]], True),
        ([[0, 0, 8, 4], [4, 4, 0, 0], [0, 0, 0, 0]], True),
        ([[4, 4, 4, 4], [0, 4, 4, 4]], False),
        ([[4, 4, 4, 0]], False),
    ],
)
def test_a_branch_is_skipped_as_a_whole(rows, fits):
    wrong = unequal_skips(torch.tensor(rows), [(0, 1), (2, 3)])
    assert (wrong is None) == fits
    assert wrong is None or "positions" in wrong
