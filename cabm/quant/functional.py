"""Symmetric fake quantization as integer codes with straight-through gradients.

A quantized tensor is kept as whole numbers ("codes") and a scale, never as their product: codes up to
256 are exact in bfloat16, so a convolution on low-precision matrix units loses nothing, and the
float simulation does the very integer arithmetic that the engine does.

Shapes: B samples, C channels, H x W pixels, K widths of the search space.

Training spends its time here in passes over activations, so they are counted. On CPUs, comparisons
write floats and never booleans (masking by a boolean costs 15 passes), bounds per sample are minimum and
maximum (clamp by tensors costs 9), and buffers are used again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def num_levels(bits: int) -> int:
    """Return n = 2^(b-1) - 1, the largest code of a signed symmetric b-bit quantizer (PAMS, eq. 2)."""
    return 2 ** (bits - 1) - 1


def _per_sample(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _sample_sums(x: Tensor) -> Tensor:
    """Sum (B,C,H,W) over each sample, in float32 or wider."""
    return x.sum(dim=(1, 2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


def channel_deviation(x: Tensor) -> Tensor:
    """Unbiased standard deviation of each channel over space, (B,C,H,W) -> (B,C), float32 or wider.

    Two passes; torch's own one-pass std is several times slower on channels-last tensors.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = x - x.mean(dim=(2, 3), keepdim=True)
    return (centred.square_().sum(dim=(2, 3)) / (x[0, 0].numel() - 1)).sqrt_()


def quantize_to_codes(x: Tensor, alpha: Tensor, levels: Tensor | float) -> Tensor:
    """Return round(clip(x, -alpha, alpha) * n / alpha), rounding half to even, without gradient.

    Args:
        x: (B,C,H,W), any range.
        alpha: (B,) or (1,) clip values, > 0.
        levels: whole n: (B,) as float, or one for all samples.

    Returns:
        (B,C,H,W) in the type of x and alpha; float32 at least, or 8-bit codes are not exact.
    """
    if not isinstance(levels, Tensor):
        # bounds known to all samples: one pass
        return (x * _per_sample(levels / alpha)).round_().clamp_(-levels, levels)
    bound = _per_sample(levels)
    codes = (x * _per_sample(levels / alpha)).round_()
    torch.minimum(codes, bound, out=codes)
    return torch.maximum(codes, -bound, out=codes)


class _AssignedCodes(torch.autograd.Function):
    """Codes of samples whose bits are given; gradients of METHOD section 1 (straight-through)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, levels: Tensor | float) -> Tensor:
        ctx.save_for_backward(x, alpha)
        ctx.levels = levels
        return quantize_to_codes(x, alpha, levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, alpha = ctx.saved_tensors
        # d codes / d value = n / alpha; the caller multiplies by the detached scale alpha / n
        grad_x = grad * _per_sample(ctx.levels / alpha)
        # -1, 0, 1: below, within, above. A quotient rounds to 1 only from alpha upwards
        side = (x / _per_sample(alpha)).clamp_(-1, 1).trunc_()
        clipped = grad_x * side
        grad_x.addcmul_(clipped, side, value=-1)
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None
        grad_alpha = clipped.sum().view(1) if alpha.numel() == 1 else _sample_sums(clipped)
        return grad_x, grad_alpha, None


class _SelectedCodes(torch.autograd.Function):
    """Codes of the selected width forward, softmax mixture of all widths backward (CADyQ, eq. 5).

    Backward sees value = sum_k p_k Q_k(x): only x, alphas and probabilities are kept, the
    K quantized tensors are made again one at a time, so memory does not grow with K.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        alphas: Tensor,
        probabilities: Tensor,
        selected: Tensor,
        levels: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, alphas, probabilities, selected, levels)
        return quantize_to_codes(x, alphas[selected], levels[selected])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, alphas, probabilities, selected, levels = ctx.saved_tensors
        # d codes / d value, put onto the sums and not onto every element
        factor = (levels / alphas)[selected]
        magnitude = x.abs()
        signed = x.sign().mul_(grad)
        passed = torch.ones_like(magnitude)
        buffer = torch.empty_like(magnitude)
        grad_alphas, grad_probabilities = [], []
        for k in range(alphas.numel()):
            alpha, level = alphas[k], levels[k]
            outside = torch.ge(magnitude, alpha, out=buffer)
            passed.addcmul_(outside, _per_sample(probabilities[:, k]), value=-1)
            sums = _sample_sums(outside.mul_(signed)) * factor
            grad_alphas.append((sums * probabilities[:, k]).sum())
            # by symmetry sum g Q(x) = sum (g sign x) Q(|x|): the magnitudes are shared by all widths
            codes = torch.mul(magnitude, level / alpha, out=buffer).round_().clamp_(max=level)
            grad_probabilities.append(_sample_sums(codes.mul_(signed)) * factor * (alpha / level))
        grad_x = passed.mul_(grad).mul_(_per_sample(factor))
        return grad_x, torch.stack(grad_alphas), torch.stack(grad_probabilities, 1), None, None


def assigned_codes(x: Tensor, alpha: Tensor, levels: Tensor | float) -> Tensor:
    """Quantize each sample with its own clip value and width, straight-through.

    The value of the result is ``codes * (alpha / levels).detach()``. With that, the gradient of the
    value is 1 for x inside the clip and sign(x) for alpha outside or on it (PAMS, eq. 4).

    Args:
        x: (B,C,H,W), any range.
        alpha: (B,) or (1,) clip values, > 0.
        levels: (B,) n of each sample's width, or one for all.
    """
    return _AssignedCodes.apply(x, alpha, levels)


def selected_codes(
    x: Tensor, alphas: Tensor, probabilities: Tensor, selected: Tensor, levels: Tensor
) -> Tensor:
    """Quantize each sample at its selected width; gradients are those of the softmax mixture.

    Args:
        x: (B,C,H,W), any range.
        alphas: (K,) clip value per width, > 0.
        probabilities: (B,K) softmax of the selector's scores.
        selected: (B,) index of the width used forward.
        levels: (K,) n per width.
    """
    return _SelectedCodes.apply(x, alphas, probabilities, selected, levels)


class _WeightCodes(torch.autograd.Function):
    """round(w n / m), straight-through; m is a constant."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, levels: int, largest: Tensor) -> Tensor:
        ctx.slope = levels / largest
        return (weight * levels).div_(largest).round_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.slope, None, None


def weight_codes(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Quantize a weight per tensor: codes = round(w n / m), scale = m / n, m = max|w| + 1e-8.

    The 1e-8 and the order of the operations are the release's: weights half way between two codes exist.

    Gradient reaches the weight as if the value were the weight itself; the scale is a constant.

    Args:
        weight: any shape and range.
        bits: width, 2..8.

    Returns:
        Codes in -n..n (with gradient) and the scale (0-dim, without). A weight of zeros has codes of zero.
    """
    levels = num_levels(bits)
    largest = torch.linalg.vector_norm(weight.detach(), torch.inf) + 1e-8
    return _WeightCodes.apply(weight, levels, largest), largest / levels
