"""Residual branches that are not computed for the samples whose width is 0.

Of a block ``output = skip + branch(input)``, the quantizer that opens the branch may choose 0 bits for a
sample. The branch then adds nothing: the sample passes as it came, not quantized, and no position of the
branch is computed for it. The bits of all of them count as 0.

Inference, and training with given bits, run the branch on the other samples only. A selector that learns
needs to know what the branch would have added, so its training runs the branch on all samples and puts
the outputs of the skipped ones aside; backward sees the softmax mixture of all widths, where 0 contributes
the input itself (straight-through, as the mixture of the other widths is: METHOD section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cabm.quant.context import PrecisionContext
from cabm.quant.layers import Quantized, SearchSpaceActivation, WidthChoice

Branch = Callable[[Tensor, Tensor | Quantized, PrecisionContext], tuple[Tensor, Tensor]]


def run_branch(
    opening: nn.Module, branch: Branch, x: Tensor, context: PrecisionContext
) -> tuple[Tensor, Tensor]:
    """Run a residual branch for the samples that its opening quantizer does not skip.

    Args:
        opening: quantizer of the branch's input, of any kind.
        branch: called with the input (b,n,h,w), the quantized input and the context of the samples
            that run; returns the sum of skip and residual, and the feature for distillation, (b,n,h,w)
            each.
        x: (B,n,h,w).
        context: of the whole batch.

    Returns:
        The sum (B,n,h,w), ``x`` where the branch is skipped, and the feature, zeros where it is skipped.
    """
    if not opening.can_skip or context.observer is not None:
        return branch(x, opening(x, context), context)
    assert isinstance(opening, SearchSpaceActivation)
    choice = opening.choose(x, context)
    if choice.keep is not None and torch.is_grad_enabled():
        return _mixed(opening, branch, x, context, choice)
    return _gathered(opening, branch, x, context, choice)


def unequal_skips(bits: Tensor | np.ndarray, branches: Sequence[Sequence[int]]) -> str | None:
    """Say in one line where rows of bits (N,L) skip only a part of a branch, or None: they never do.

    Args:
        bits: widths.
        branches: positions of each branch that can be skipped.
    """
    for positions in branches:
        zero = bits[:, list(positions)] == 0
        if bool((zero.any(1) != zero.all(1)).any()):
            listed = ", ".join(map(str, positions))
            return f"the bits of positions {listed}, one residual branch, must be 0 together or not at all"
    return None


def _gathered(
    opening: SearchSpaceActivation,
    branch: Branch,
    x: Tensor,
    context: PrecisionContext,
    choice: WidthChoice,
) -> tuple[Tensor, Tensor]:
    """Run the branch on the samples that are computed, and on nothing else."""
    assert choice.computed is not None
    samples = choice.computed.nonzero()[:, 0]
    batch = len(x)
    if len(samples) == 0:
        nothing = torch.zeros(batch, dtype=choice.bits.dtype, device=x.device)
        for _ in range(opening.num_branch_positions):
            context.report(nothing, None if choice.keep is None else nothing.to(choice.keep.dtype))
        return x, x.new_zeros(()).expand_as(x)
    if len(samples) == batch:
        inner = context.inside()
        opening.report(choice, inner)
        result, feature = branch(x, opening.quantize(x, choice), inner)
        _take_reports(context, inner, choice)
        return result, feature
    part, chosen = x[samples], choice.of(samples)
    inner = context.inside(samples)
    opening.report(chosen, inner)
    result, feature = branch(part, opening.quantize(part, chosen), inner)
    inner.chosen = [_spread(used, samples, batch) for used in inner.chosen]
    inner.expected = [_spread(expected, samples, batch) for expected in inner.expected]
    _take_reports(context, inner, choice)
    passed = x.clone()
    passed[samples] = result.to(x.dtype)
    return passed, _spread(feature, samples, batch)


def _mixed(
    opening: SearchSpaceActivation,
    branch: Branch,
    x: Tensor,
    context: PrecisionContext,
    choice: WidthChoice,
) -> tuple[Tensor, Tensor]:
    """Run the branch on all samples; forward takes each by its choice, backward by its probability."""
    assert choice.computed is not None and choice.keep is not None
    inner = context.inside()
    opening.report(choice, inner)
    result, feature = branch(x, opening.quantize(x, choice), inner)
    _take_reports(context, inner, choice)
    # attention transfer is blind to a feature's size, so that it has no gradient for the gate
    kept = torch.where(_per_sample(choice.computed), feature, feature.new_zeros(()))
    return _Gate.apply(result, x, choice.keep, choice.computed), kept


def _take_reports(context: PrecisionContext, inner: PrecisionContext, choice: WidthChoice) -> None:
    """Pass a branch's reports on, with those of skipped samples as 0 bits."""
    for used in inner.chosen:
        context.chosen.append(used * choice.computed)
    for expected in inner.expected:
        context.expected.append(expected * choice.keep)


def _spread(x: Tensor, samples: Tensor, batch: int) -> Tensor:
    """Return (batch,...) with (b,...) at the samples of these numbers and zeros elsewhere."""
    spread = x.new_zeros(batch, *x.shape[1:])
    spread[samples] = x
    return spread


def _per_sample(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


class _Gate(torch.autograd.Function):
    """The result of a branch or the input that it stands for; backward, their mixture."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, keep: Tensor, computed: Tensor) -> Tensor:
        ctx.save_for_backward(result - x, keep)
        return torch.where(_per_sample(computed), result, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        difference, keep = ctx.saved_tensors
        grad_result = grad * _per_sample(keep)
        grad_keep = (difference * grad).sum(dim=(1, 2, 3))
        return grad_result, grad - grad_result, grad_keep, None
