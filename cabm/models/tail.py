"""A linear tail (convolutions and pixel shuffles) collapsed to one convolution.

EDSR's tail has no activations: conv, PixelShuffle, ..., conv. It equals one small convolution on the
low-resolution grid, which computes all r^2 phases of the output, followed by one PixelShuffle. The two
differ at the border only, because the intermediate layers pad with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def compose_kernels(outer: Tensor, inner: Tensor) -> Tensor:
    """Return the kernel that equals ``inner`` followed by ``outer``.

    Args:
        outer: (O,M,k,k) kernel of the later convolution.
        inner: (M,I,j,j) kernel of the earlier one.

    Returns:
        (O,I,k+j-1,k+j-1).
    """
    margin = outer.shape[-1] - 1
    return F.conv2d(inner.transpose(0, 1), outer.flip(2, 3), padding=margin).transpose(0, 1)


def before_pixel_shuffle(kernel: Tensor, factor: int) -> Tensor:
    """Move a convolution from after a PixelShuffle to before it.

    Args:
        kernel: (O,I,k,k) on the fine grid; k is odd.
        factor: r of the PixelShuffle.

    Returns:
        (O r^2, I r^2, j, j) on the coarse grid; its outputs are the phases in the order of PixelShuffle.
    """
    reach = kernel.shape[-1] // 2
    cells = -(-reach // factor)  # coarse pixels that the kernel reaches on each side
    size = (2 * cells + 1) * factor
    phases = []
    for row in range(factor):
        for column in range(factor):
            top, left = cells * factor + row - reach, cells * factor + column - reach
            bottom, right = size - top - kernel.shape[-1], size - left - kernel.shape[-1]
            phases.append(F.pixel_unshuffle(F.pad(kernel, (left, right, top, bottom)), factor))
    return torch.stack(phases, dim=1).flatten(0, 1)


def collapse(convs: Sequence[nn.Conv2d], factors: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution that equals a linear tail before PixelShuffle.

    Args:
        convs: convolutions with biases, first to last.
        factors: r of the PixelShuffle after each convolution except the last.

    Returns:
        The weight (3 R^2,n,k,k) and the bias (3 R^2). PixelShuffle(R) follows; R is the product of the
        factors.
    """
    weight, bias = convs[-1].weight, convs[-1].bias
    for conv, factor in zip(reversed(convs[:-1]), reversed(factors), strict=True):
        weight = before_pixel_shuffle(weight, factor)
        bias = bias.repeat_interleave(factor**2) + weight.sum(dim=(2, 3)) @ conv.bias
        weight = compose_kernels(weight, conv.weight)
    # phases are nested, last factor first; PixelShuffle(R) wants one index per axis
    return _merge_phases(weight, bias, list(factors))


def _merge_phases(weight: Tensor, bias: Tensor, factors: list[int]) -> tuple[Tensor, Tensor]:
    """Reorder nested phases to those of one PixelShuffle."""
    if len(factors) == 1:
        return weight, bias
    # rows are (O, last factor y, x, ..., first factor y, x); the first factor makes the coarse steps
    nested = [side for factor in reversed(factors) for side in (factor, factor)]
    outputs = weight.shape[0]
    for factor in factors:
        outputs //= factor**2
    count = len(factors)
    order = [0]
    order += [1 + 2 * (count - 1 - i) for i in range(count)]  # y of the first factor comes first
    order += [2 + 2 * (count - 1 - i) for i in range(count)]
    index = torch.arange(weight.shape[0], device=weight.device).view(outputs, *nested)
    index = index.permute(order).reshape(-1)
    return weight[index], bias[index]
