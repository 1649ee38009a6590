"""EDSR's linear tail as one convolution, exact up to the border.

`cabm.models.tail.collapse` composes the tail into one kernel. It is exact inside the image, but not at the
border: the tail's own layers pad their inputs with zeros, where the one kernel would use values that it
computes beyond the border. The outermost ring of low-resolution pixels therefore has eight kernels of its
own, for four sides and four corners: the same composition without the taps beyond the border.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.engine.elementwise import dense
from cabm.engine.float_conv import FloatConv, minus_image
from cabm.models.tail import compose_kernels


class Edge(NamedTuple):
    """The sides of the image that a low-resolution pixel touches."""

    top: bool = False
    bottom: bool = False
    left: bool = False
    right: bool = False


def collapse_at(convs: Sequence[nn.Conv2d], factors: Sequence[int], edge: Edge) -> tuple[Tensor, Tensor]:
    """Return the convolution that equals a linear tail at a pixel on ``edge``.

    Args:
        convs: the convolutions, first to last, with biases and odd kernels.
        factors: r of the PixelShuffle after each convolution but the last; R is their product.
        edge: the sides that the pixel touches. Its distance to the others exceeds the kernel's reach.

    Returns:
        weight (3 R^2, n, k, k) and bias (3 R^2,), to be followed by PixelShuffle(R).
    """
    scale = math.prod(factors)
    outputs = convs[-1].out_channels
    # one kernel per output pixel (phase) of the low-resolution pixel, moved to coarser and coarser grids
    weight = convs[-1].weight.detach().repeat_interleave(scale**2, dim=0)
    bias = convs[-1].bias.detach().repeat_interleave(scale**2)
    rows, columns = (part.reshape(-1) for part in torch.meshgrid(*[torch.arange(scale)] * 2, indexing="ij"))
    rows, columns = rows.repeat(outputs), columns.repeat(outputs)  # each phase's place on the current grid
    side = scale
    weight = _drop_outside(weight, rows, columns, side, edge)
    for conv, factor in zip(reversed(convs[:-1]), reversed(factors), strict=True):
        weight = _onto_coarse_grid(weight, rows % factor, columns % factor, factor)
        rows, columns, side = rows // factor, columns // factor, side // factor
        bias = bias + weight.sum(dim=(2, 3)) @ conv.bias.detach()
        weight = _drop_outside(compose_kernels(weight, conv.weight.detach()), rows, columns, side, edge)
    return weight, bias


def _onto_coarse_grid(weight: Tensor, rows: Tensor, columns: Tensor, factor: int) -> Tensor:
    """Move kernels, each of one fine pixel, from after PixelShuffle(factor) to before it.

    Args:
        weight: (P,I,k,k), centred on the fine pixels.
        rows, columns: (P,) place of the fine pixel in its coarse pixel, 0..factor-1.
        factor: r.

    Returns:
        (P,I factor^2,j,j), centred on the coarse pixel.
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
    """Zero the taps of (P,I,k,k) kernels beyond ``edge``; ``side`` fine pixels make a coarse one."""
    reach = weight.shape[-1] // 2
    taps = torch.arange(-reach, reach + 1)
    y, x = rows[:, None] + taps, columns[:, None] + taps
    keep_y = ((y >= 0) | (not edge.top)) & ((y < side) | (not edge.bottom))
    keep_x = ((x >= 0) | (not edge.left)) & ((x < side) | (not edge.right))
    return weight * (keep_y[:, None, :, None] & keep_x[:, None, None, :])


class CollapsedTail:
    """A linear tail on features (N,n,h,w): one convolution, and other kernels for the outermost ring.

    In bfloat16 the convolution subtracts the low-resolution pixel, which is added again in float32 (see
    `minus_image`): the error is 0.02 levels instead of 0.15.

    Args:
        convs: the convolutions, first to last, with biases.
        factors: r of the PixelShuffle after each convolution but the last.
        dtype: type that the convolution computes in; the ring is computed in float32.
        replicate: features are replicated beyond the border (`EDSR.replicate_tail`), so there is no ring.
    """

    def __init__(
        self,
        convs: Sequence[nn.Conv2d],
        factors: Sequence[int],
        dtype: torch.dtype,
        *,
        replicate: bool = False,
    ) -> None:
        self._replicate = replicate
        self._convs, self._factors, self._dtype = list(convs), list(factors), dtype
        self._scale = math.prod(factors)
        weight, bias = collapse_at(self._convs, self._factors, Edge())
        self._reach = weight.shape[-1] // 2
        if dtype != torch.float32:
            weight = minus_image(weight, self._scale**2)
        self._inner = FloatConv(weight, bias, dtype)
        self._remainder = (bias - bias.to(dtype).float()).view(1, -1, 1, 1)
        edges = [] if replicate else [edge for edge in _edges() if any(edge)]
        self._ring = [self._ring_part(edge) for edge in edges]

    def __call__(self, feature: Tensor, image: Tensor) -> Tensor:
        """Return the upscaled image (N,3,h*R,w*R) float32.

        Args:
            feature: (N,n,h,w) float32.
            image: (N,3,h,w) float32, the low-resolution image minus the mean; used in bfloat16 only.
        """
        if (
            not self._replicate and min(feature.shape[2:]) <= self._reach
        ):  # a pixel may touch opposite sides
            return self._by_layers(feature)
        if self._dtype == torch.float32:
            phases = self._inside(feature)
        else:
            pixels = dense(image.to(self._dtype))
            joined = dense(torch.cat([dense(feature.to(self._dtype)), pixels], dim=1))
            phases = self._inside(joined).float()
            phases.add_(self._remainder)
            pixels = pixels.float()
            phases.view(-1, image.shape[1], self._scale**2, *image.shape[2:]).add_(pixels[:, :, None])
        for part in self._ring:
            part.overwrite(phases, feature)
        return F.pixel_shuffle(phases, self._scale)

    def _inside(self, x: Tensor) -> Tensor:
        """Convolve with the kernel of the inside; beyond the border are zeros, or the outermost pixels."""
        if not self._replicate:
            return self._inner(x)
        reach = self._reach
        return self._inner(F.pad(x, [reach] * 4, mode="replicate"))[:, :, reach:-reach, reach:-reach]

    def _by_layers(self, feature: Tensor) -> Tensor:
        for conv, factor in zip(self._convs, self._factors, strict=False):
            feature = F.pixel_shuffle(conv(feature), factor)
        return self._convs[-1](feature)

    def _ring_part(self, edge: Edge) -> _RingPart:
        weight, bias = collapse_at(self._convs, self._factors, edge)
        y, from_y, taps_y, pad_y = _span(edge.top, edge.bottom, self._reach)
        x, from_x, taps_x, pad_x = _span(edge.left, edge.right, self._reach)
        weight = weight[:, :, taps_y, taps_x].contiguous()
        return _RingPart(weight, bias, (from_y, from_x), (y, x), (pad_y, pad_x))


@dataclass(frozen=True)
class _RingPart:
    """A side or a corner: its kernel, the pixels it reads and the pixels it writes."""

    weight: Tensor
    bias: Tensor
    reads: tuple[slice, slice]
    writes: tuple[slice, slice]
    padding: tuple[int, int]

    def overwrite(self, phases: Tensor, feature: Tensor) -> None:
        """Compute the part's pixels in ``phases`` (N,3R^2,h,w) anew from ``feature`` (N,n,h,w)."""
        region = feature[:, :, *self.reads]
        phases[:, :, *self.writes] = F.conv2d(region, self.weight, self.bias, padding=self.padding)


def _span(first: bool, last: bool, reach: int) -> tuple[slice, slice, slice, int]:
    """Return, along one axis, pixels to write, pixels to read, the kernel taps for these, and padding."""
    if first:
        return slice(0, 1), slice(0, reach + 1), slice(reach, None), 0
    if last:
        return slice(-1, None), slice(-reach - 1, None), slice(0, reach + 1), 0
    return slice(None), slice(None), slice(None), reach


def _edges() -> list[Edge]:
    """Return the inside, the sides, and the corners, which touch two sides."""
    ends = ((False, False), (True, False), (False, True))
    edges = [Edge(*vertical, *horizontal) for vertical, horizontal in product(ends, ends)]
    return sorted(edges, key=sum)
