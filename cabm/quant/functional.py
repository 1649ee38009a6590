"""Symmetric fake quantization as integer codes with straight-through gradients.

A quantized tensor is a pair of integers ("codes") and a scale, not their product. Codes of up to 8 bits are
exact in bfloat16, so convolutions on low-precision matrix units lose nothing, and the simulation does the
same integer arithmetic as the integer engine.

Shapes: B samples, C channels, H x W pixels, K widths of the search space.

Training time goes into passes over activations. On the CPU each operation is one compiled loop
(`cabm.quant.fused`). Other devices, types and layouts take the PyTorch operations of this module, which
reuse buffers, write comparisons as floats (masking by a boolean is slow) and clip by minimum and maximum
(clamping by tensors is slow).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cabm.quant import fused
from cabm.quant.levels import num_levels


def _per_sample(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _sample_sums(x: Tensor) -> Tensor:
    """Sum (B,C,H,W) over each sample, in float32 or wider."""
    return x.sum(dim=(1, 2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


def channel_deviation(x: Tensor) -> Tensor:
    """Return the unbiased standard deviation of each channel over space, (B,C,H,W) -> (B,C).

    The result is float32 or wider. `torch.std` is several times slower on channels-last tensors.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = x - x.mean(dim=(2, 3), keepdim=True)
    return (centred.square_().sum(dim=(2, 3)) / (x[0, 0].numel() - 1)).sqrt_()


def quantize_to_codes(x: Tensor, alpha: Tensor, levels: Tensor | float) -> Tensor:
    """Return round(clip(x, -alpha, alpha) * n / alpha), rounding half to even, without gradient.

    Args:
        x: (B,C,H,W), any range.
        alpha: (B,) or (1,) clip values, > 0.
        levels: largest code n: (B,) as float, or one for all samples.

    Returns:
        (B,C,H,W) in the promoted type of ``x`` and ``alpha``, which must be float32 or wider: in narrower
        types 8-bit codes are not exact.
    """
    if not isinstance(levels, Tensor):
        # one bound for all samples takes one pass
        return (x * _per_sample(fused.inverse_step(alpha, levels))).round_().clamp_(-levels, levels)
    bound = _per_sample(levels)
    codes = (x * _per_sample(levels / alpha)).round_()
    torch.minimum(codes, bound, out=codes)
    return torch.maximum(codes, -bound, out=codes)


def _coded(
    x: Tensor, alpha: Tensor, levels: Tensor | float, decoded: bool, code_type: torch.dtype
) -> Tensor:
    """Return codes as ``code_type``, or their values if ``decoded``."""
    if fused.available(x) and code_type in fused.TYPES:
        return fused.decode(x, alpha, levels) if decoded else fused.encode(x, alpha, levels, code_type)
    codes = quantize_to_codes(x, alpha, levels)
    return codes.mul_(_per_sample(alpha / levels)) if decoded else codes.to(code_type)


class _Assigned(torch.autograd.Function):
    """Codes or values at given widths, with straight-through gradients (PAMS, eq. 4)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        alpha: Tensor,
        levels: Tensor | float,
        decoded: bool,
        code_type: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(x, alpha)
        ctx.levels, ctx.decoded = levels, decoded
        return _coded(x, alpha, levels, decoded, code_type)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        x, alpha = ctx.saved_tensors
        # d codes / d value = n / alpha; the caller multiplies by the detached scale alpha / n
        slope = torch.ones_like(alpha) if ctx.decoded else ctx.levels / alpha
        if fused.available(x) and grad.dtype in fused.TYPES:
            grad_x, clipped_sums = fused.encode_gradient(grad, x, alpha, slope)
        else:
            grad_x = grad * _per_sample(slope)
            # -1, 0 or 1: below, inside or above the clip; a quotient rounds to 1 only from alpha upwards
            side = (x / _per_sample(alpha)).clamp_(-1, 1).trunc_()
            clipped = grad_x * side
            grad_x.addcmul_(clipped, side, value=-1)
            clipped_sums = _sample_sums(clipped) if ctx.needs_input_grad[1] else None
        if clipped_sums is None or not ctx.needs_input_grad[1]:
            return grad_x, None, None, None, None
        grad_alpha = clipped_sums.sum().view(1) if alpha.numel() == 1 else clipped_sums
        return grad_x, grad_alpha, None, None, None


class _Selected(torch.autograd.Function):
    """Codes or values at the selected width; gradients of the softmax mixture of all widths (CADyQ, eq. 5).

    Backward differentiates sum_k p_k Q_k(x). It recomputes the K quantized tensors one at a time, so memory
    does not grow with K.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        alphas: Tensor,
        probabilities: Tensor,
        selected: Tensor,
        levels: Tensor,
        decoded: bool,
        code_type: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(x, alphas, probabilities, selected, levels)
        ctx.decoded = decoded
        return _coded(x, alphas[selected], levels[selected], decoded, code_type)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, alphas, probabilities, selected, levels = ctx.saved_tensors
        # d codes / d value; multiplied with the sums instead of with every element
        slope = torch.ones_like(probabilities[:, 0]) if ctx.decoded else (levels / alphas)[selected]
        if fused.available(x) and grad.dtype in fused.TYPES:
            found = fused.mixture_gradient(grad, x, alphas, levels, probabilities, slope)
        else:
            found = _mixture_gradient(grad, x, alphas, levels, probabilities, slope)
        grad_x, clipped, coded = found
        grad_alphas = (clipped * slope[:, None] * probabilities).sum(0)
        grad_probabilities = coded * slope[:, None] * (alphas / levels)
        return grad_x, grad_alphas, grad_probabilities, None, None, None, None


def _mixture_gradient(
    grad: Tensor, x: Tensor, alphas: Tensor, levels: Tensor, probabilities: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `fused.mixture_gradient` returns, computed by PyTorch."""
    magnitude = x.abs()
    signed = x.sign().mul_(grad)
    passed = torch.ones_like(magnitude)
    buffer = torch.empty_like(magnitude)
    clipped, coded = [], []
    for k in range(alphas.numel()):
        alpha, level = alphas[k], levels[k]
        outside = torch.ge(magnitude, alpha, out=buffer)
        passed.addcmul_(outside, _per_sample(probabilities[:, k]), value=-1)
        clipped.append(_sample_sums(outside.mul_(signed)))
        # sum g Q(x) = sum (g sign x) Q(|x|), by symmetry, so all widths share the magnitudes
        codes = torch.mul(magnitude, level / alpha, out=buffer).round_().clamp_(max=level)
        coded.append(_sample_sums(codes.mul_(signed)))
    grad_x = passed.mul_(grad).mul_(_per_sample(slope))
    return grad_x, torch.stack(clipped, 1), torch.stack(coded, 1)


def _code_type(x: Tensor) -> torch.dtype:
    """Return the type that convolutions compute in; 8-bit codes are exact in every one."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def assigned_codes(x: Tensor, alpha: Tensor, levels: Tensor | float, *, decoded: bool = False) -> Tensor:
    """Quantize each sample with its own clip value and width, straight-through.

    The value of the result is ``codes * (alpha / levels).detach()``. Its gradient is 1 with respect to x
    inside the clip, and sign(x) with respect to alpha on the clip and outside it (PAMS, eq. 4).

    Args:
        x: (B,C,H,W), any range.
        alpha: (B,) or (1,) clip values, > 0.
        levels: largest code n: (B,) as float, or one for all samples.
        decoded: return the value instead, in the type of ``x``.

    Returns:
        Codes in the type that autocast convolves in, or values.
    """
    return _Assigned.apply(x, alpha, levels, decoded, _code_type(x))


def selected_codes(
    x: Tensor,
    alphas: Tensor,
    probabilities: Tensor,
    selected: Tensor,
    levels: Tensor,
    *,
    decoded: bool = False,
) -> Tensor:
    """Quantize each sample at its selected width, with the gradients of the softmax mixture of all widths.

    Args:
        x: (B,C,H,W), any range.
        alphas: (K,) clip values, > 0.
        probabilities: (B,K) softmax of the selector's scores.
        selected: (B,) index of the selected width.
        levels: (K,) largest code n of each width.
        decoded: return the value, codes * alpha / n, instead, in the type of ``x``.

    Returns:
        Codes in the type that autocast convolves in, or values.
    """
    return _Selected.apply(x, alphas, probabilities, selected, levels, decoded, _code_type(x))


class _Rescale(torch.autograd.Function):
    """y * scale + bias, one loop forward and one backward; the scale gets no gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.type = y.dtype
        return fused.rescale(y, scale, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        (scale,) = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_y, grad_bias = fused.rescale_gradient(grad, scale, ctx.type)
        return grad_y, None, grad_bias


def rescale(y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Return y * scale + bias, which turns a convolution of codes into values, in float32 or wider.

    Args:
        y: (B,O,H,W) result of the convolution.
        scale: (B,1,1,1), (1,1,1,1) or a scalar, without gradient.
        bias: (O,) or None.
    """
    single = bias is not None and scale.dtype == bias.dtype == torch.float32
    if single and fused.available(y, types=fused.TYPES):
        return _Rescale.apply(y, scale, bias)
    y = y.to(torch.promote_types(y.dtype, scale.dtype))
    return y.mul_(scale) if bias is None else torch.addcmul(bias.view(1, -1, 1, 1), y, scale)


class _WeightCodes(torch.autograd.Function):
    """round(w n / m), straight-through; m gets no gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, levels: int, largest: Tensor) -> Tensor:
        ctx.slope = levels / largest
        return (weight * levels).div_(largest).round_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.slope, None, None


def weight_codes(weight: Tensor, bits: int, *, per_channel: bool = False) -> tuple[Tensor, Tensor]:
    """Quantize a weight: codes = round(w n / m), scale = m / n, m = max|w| + 1e-8.

    The 1e-8 and the order of operations are those of the released code; both matter for weights half way
    between two codes. The gradient of the value with respect to the weight is 1.

    Args:
        weight: any shape and range; with ``per_channel`` (O,I,k,k).
        bits: width, 2..8.
        per_channel: take m of each output channel by itself instead of the whole tensor's.

    Returns:
        Codes in -n..n, with gradient, and the scale, without: a scalar or, per channel, (1,O,1,1). A weight
        of zeros has codes of zero.
    """
    levels = num_levels(bits)
    axes = (1, 2, 3) if per_channel else None
    largest = torch.linalg.vector_norm(weight.detach(), torch.inf, dim=axes, keepdim=per_channel) + 1e-8
    codes = _WeightCodes.apply(weight, levels, largest)
    return codes, (largest.transpose(0, 1) if per_channel else largest) / levels
