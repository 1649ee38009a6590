"""A linear tail (convolutions and pixel shuffles) as one convolution.

EDSR's tail has no activation: conv, PixelShuffle, ..., conv. It equals one small convolution on the
low-resolution grid that makes all r^2 phases of the output at once, followed by one PixelShuffle. Zero
padding of the intermediate layers is the only thing that is lost, hence the border.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def compose_kernels(outer: Tensor, inner: Tensor) -> Tensor:
    """Return the kernel of ``outer`` after ``inner``.

    Args:
        outer: (O,M,k,k) kernel of the later convolution.
        inner: (M,I,j,j) kernel of the earlier one.

    Returns:
        (O,I,k+j-1,k+j-1).
    """
    margin = outer.shape[-1] - 1
    return F.conv2d(inner.transpose(0, 1), outer.flip(2, 3), padding=margin).transpose(0, 1)


def before_pixel_shuffle(kernel: Tensor, factor: int) -> Tensor:
    """Move a convolution from behind PixelShuffle to before it.

    Args:
        kernel: (O,I,k,k), k odd, on the fine grid.
        factor: r of the PixelShuffle that feeds it.

    Returns:
        (O r^2, I r^2, j, j) on the coarse grid: its outputs are the phases, in PixelShuffle's order.
    """
    reach = kernel.shape[-1] // 2
    cells = -(-reach // factor)  # coarse pixels that the kernel can reach on each side
    size = (2 * cells + 1) * factor
    phases = []
    for row in range(factor):
        for column in range(factor):
            top, left = cells * factor + row - reach, cells * factor + column - reach
            bottom, right = size - top - kernel.shape[-1], size - left - kernel.shape[-1]
            phases.append(F.pixel_unshuffle(F.pad(kernel, (left, right, top, bottom)), factor))
    return torch.stack(phases, dim=1).flatten(0, 1)


def collapse(convs: Sequence[nn.Conv2d], factors: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the one convolution that a linear tail equals.

    Args:
        convs: the convolutions, first to last, with biases.
        factors: r of the PixelShuffle after each but the last.

    Returns:
        weight (3 R^2, n, k, k) and bias (3 R^2), to be followed by PixelShuffle(R), R = product of factors.
    """
    weight, bias = convs[-1].weight, convs[-1].bias
    for conv, factor in zip(reversed(convs[:-1]), reversed(factors), strict=True):
        weight = before_pixel_shuffle(weight, factor)
        bias = bias.repeat_interleave(factor**2) + weight.sum(dim=(2, 3)) @ conv.bias
        weight = compose_kernels(weight, conv.weight)
    # phases stand coarse factor first: (O, r2.., r1..) -> PixelShuffle order over the product
    return _merge_phases(weight, bias, list(factors))


def _merge_phases(weight: Tensor, bias: Tensor, factors: list[int]) -> tuple[Tensor, Tensor]:
    """Reorder nested phase indices into those of one PixelShuffle."""
    if len(factors) == 1:
        return weight, bias
    # rows are (O, last factor y, x, ..., first factor y, x); the first shuffle is the coarse part
    nested = [side for factor in reversed(factors) for side in (factor, factor)]
    outputs = weight.shape[0]
    for factor in factors:
        outputs //= factor**2
    count = len(factors)
    order = [0]
    order += [1 + 2 * (count - 1 - i) for i in range(count)]  # y of the first factor is most significant
    order += [2 + 2 * (count - 1 - i) for i in range(count)]
    index = torch.arange(weight.shape[0], device=weight.device).view(outputs, *nested)
    index = index.permute(order).reshape(-1)
    return weight[index], bias[index]
