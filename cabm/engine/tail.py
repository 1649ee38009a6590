"""EDSR's linear tail as one convolution, right up to the border.

`cabm.models.tail.collapse` composes the tail into one kernel that holds inside the image. At its border the
intermediate layers pad with zeros what the one kernel takes for real, so the pixels of the outermost ring
(`scale` output pixels) have kernels of their own: the same composition without the taps outside. They are
eight: four sides and four corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.models.tail import compose_kernels


class Edge(NamedTuple):
    """On which sides of the image a low-resolution pixel lies."""

    top: bool = False
    bottom: bool = False
    left: bool = False
    right: bool = False


def collapse_at(convs: Sequence[nn.Conv2d], factors: Sequence[int], edge: Edge) -> tuple[Tensor, Tensor]:
    """Return the one convolution that a linear tail equals at a pixel that lies on ``edge``.

    Args:
        convs: the convolutions, first to last, with biases, kernels odd.
        factors: r of the PixelShuffle after each but the last; R is their product.
        edge: the sides beyond which there is nothing. The pixel is further from the others than the
            kernel reaches.

    Returns:
        weight (3 R^2, n, k, k) and bias (3 R^2,), to be followed by PixelShuffle(R).
    """
    scale = 1
    for factor in factors:
        scale *= factor
    outputs = convs[-1].out_channels
    # one kernel per output pixel (phase) of the low-resolution pixel, on ever coarser grids
    phases = outputs * scale * scale
    weight = convs[-1].weight.detach().repeat_interleave(scale**2, dim=0)
    bias = convs[-1].bias.detach().repeat_interleave(scale**2)
    rows, columns = (part.reshape(-1) for part in torch.meshgrid(*[torch.arange(scale)] * 2, indexing="ij"))
    rows, columns = rows.repeat(outputs), columns.repeat(outputs)  # of each phase, on the current grid
    side = scale
    weight = _drop_outside(weight, rows, columns, side, edge)
    for conv, factor in zip(reversed(convs[:-1]), reversed(factors), strict=True):
        weight = _onto_coarse_grid(weight, rows % factor, columns % factor, factor)
        rows, columns, side = rows // factor, columns // factor, side // factor
        bias = bias + weight.sum(dim=(2, 3)) @ conv.bias.detach()
        weight = _drop_outside(compose_kernels(weight, conv.weight.detach()), rows, columns, side, edge)
    assert weight.shape[0] == phases
    return weight, bias


def _onto_coarse_grid(weight: Tensor, rows: Tensor, columns: Tensor, factor: int) -> Tensor:
    """Move each kernel from behind PixelShuffle(factor) to before it.

    Args:
        weight: (P,I,k,k) kernels about fine pixels.
        rows, columns: (P,) place of that fine pixel in its coarse one, 0..factor-1.
        factor: r.

    Returns:
        (P,I factor^2,j,j) about the coarse pixel.
    """
    size = weight.shape[-1]
    reach = size // 2
    cells = -(-reach // factor)  # coarse pixels that the kernel can reach on each side
    moved = weight.new_zeros(*weight.shape[:2], *[(2 * cells + 1) * factor] * 2)
    for row, column in product(range(factor), repeat=2):
        top, left = cells * factor + row - reach, cells * factor + column - reach
        here = (rows == row) & (columns == column)
        moved[here, :, top : top + size, left : left + size] = weight[here]
    return F.pixel_unshuffle(moved, factor)


def _drop_outside(weight: Tensor, rows: Tensor, columns: Tensor, side: int, edge: Edge) -> Tensor:
    """Clear the taps of (P,I,k,k) kernels that lie beyond ``edge``; ``side`` pixels make a coarse one."""
    reach = weight.shape[-1] // 2
    taps = torch.arange(-reach, reach + 1)
    y, x = rows[:, None] + taps, columns[:, None] + taps
    keep_y = ((y >= 0) | (not edge.top)) & ((y < side) | (not edge.bottom))
    keep_x = ((x >= 0) | (not edge.left)) & ((x < side) | (not edge.right))
    return weight * (keep_y[:, None, :, None] & keep_x[:, None, None, :])


class CollapsedTail:
    """A linear tail on features (N,n,h,w): one convolution inside, ring pixels by their own kernels.

    Args:
        convs: the convolutions, first to last, with biases.
        factors: r of the PixelShuffle after each but the last.
        offset: (3,) added to the result, such as the mean colour.
        dtype: what the inner convolution computes in; the ring is float32.
    """

    def __init__(
        self, convs: Sequence[nn.Conv2d], factors: Sequence[int], offset: Tensor, dtype: torch.dtype
    ) -> None:
        self._convs, self._factors, self._offset = list(convs), list(factors), offset.view(1, -1, 1, 1)
        self._scale = 1
        for factor in factors:
            self._scale *= factor
        self._kernels = {edge: self._kernel(edge) for edge in _edges()}
        weight, bias = self._kernels[Edge()]
        self._reach = weight.shape[-1] // 2
        self._dtype = dtype
        self._inner = (weight.to(dtype).contiguous(memory_format=torch.channels_last), bias.to(dtype))

    def _kernel(self, edge: Edge) -> tuple[Tensor, Tensor]:
        weight, bias = collapse_at(self._convs, self._factors, edge)
        return weight, bias + self._offset.view(-1).repeat_interleave(self._scale**2)

    def __call__(self, feature: Tensor) -> Tensor:
        """Return the image (N,3,h*R,w*R) float32 from ``feature`` (N,n,h,w) float32."""
        height, width = feature.shape[2:]
        if min(height, width) <= self._reach:  # opposite sides come together
            return self._by_layers(feature)
        weight, bias = self._inner
        phases = F.conv2d(feature.to(self._dtype), weight, bias, padding=self._reach).float()
        for edge in _edges():
            if any(edge):
                self._mend(phases, feature, edge)
        return F.pixel_shuffle(phases, self._scale)

    def _by_layers(self, feature: Tensor) -> Tensor:
        for conv, factor in zip(self._convs, self._factors, strict=False):
            feature = F.pixel_shuffle(conv(feature), factor)
        return self._convs[-1](feature) + self._offset

    def _mend(self, phases: Tensor, feature: Tensor, edge: Edge) -> None:
        """Overwrite the pixels on ``edge`` in ``phases`` (N,3R^2,h,w)."""
        weight, bias = self._kernels[edge]
        y, from_y, taps_y, pad_y = _span(edge.top, edge.bottom, self._reach)
        x, from_x, taps_x, pad_x = _span(edge.left, edge.right, self._reach)
        region, weight = feature[:, :, from_y, from_x], weight[:, :, taps_y, taps_x]
        phases[:, :, y, x] = F.conv2d(region, weight, bias, padding=(pad_y, pad_x))


def _span(first: bool, last: bool, reach: int) -> tuple[slice, slice, slice, int]:
    """Along one axis: pixels to write, pixels to read, taps that meet them, padding."""
    if first:
        return slice(0, 1), slice(0, reach + 1), slice(reach, None), 0
    if last:
        return slice(-1, None), slice(-reach - 1, None), slice(0, reach + 1), 0
    return slice(None), slice(None), slice(None), reach


def _edges() -> list[Edge]:
    """Inside, the sides, then the corners, which lie on two sides."""
    ends = ((False, False), (True, False), (False, True))
    edges = [Edge(*vertical, *horizontal) for vertical, horizontal in product(ends, ends)]
    return sorted(edges, key=sum)
