"""EDSR's linear tail as one convolution, right up to the border.

`cabm.models.tail.collapse` composes the tail into one kernel that holds inside the image. At its border the
intermediate layers pad with zeros what the one kernel takes for real, so the pixels of the outermost ring
(`scale` output pixels) have kernels of their own: the same composition without the taps outside. They are
eight: four sides and four corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.engine.elementwise import dense
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

    In bfloat16 the convolution also subtracts the low-resolution pixel, which is added again in float32:
    what is rounded to 8 bits of mantissa is a small difference then, not the whole value, and costs an
    error of 0.02 levels instead of 0.15.

    Args:
        convs: the convolutions, first to last, with biases.
        factors: r of the PixelShuffle after each but the last.
        dtype: what the inner convolution computes in; the ring is float32.
        replicate: the features go on beyond the border as its pixels do (`EDSR.replicate_tail`): no ring.
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
        self._scale = 1
        for factor in factors:
            self._scale *= factor
        weight, bias = collapse_at(self._convs, self._factors, Edge())
        self._reach = weight.shape[-1] // 2
        if dtype != torch.float32:
            weight = torch.cat([weight, self._minus_pixel(weight)], dim=1)
        self._inner = dense(weight.to(dtype)), bias.to(dtype)
        self._remainder = (bias - bias.to(dtype).float()).view(1, -1, 1, 1)
        edges = [] if replicate else [edge for edge in _edges() if any(edge)]
        self._ring = [self._ring_part(edge) for edge in edges]

    def __call__(self, feature: Tensor, image: Tensor) -> Tensor:
        """Return the upscaled image (N,3,h*R,w*R) float32.

        Args:
            feature: (N,n,h,w) float32.
            image: (N,3,h,w) float32, the low-resolution image about the mean; only an aid to precision.
        """
        padding = self._reach
        if self._replicate:
            feature = F.pad(feature, [self._reach] * 4, mode="replicate")
            padding = 0
        elif min(feature.shape[2:]) <= self._reach:  # opposite sides come together
            return self._by_layers(feature)
        weight, bias = self._inner
        if self._dtype == torch.float32:
            phases = F.conv2d(feature, weight, bias, padding=padding)
        else:
            pixels = dense(image.to(self._dtype))
            around = F.pad(pixels, [self._reach] * 4, mode="replicate") if self._replicate else pixels
            joined = dense(torch.cat([dense(feature.to(self._dtype)), around], dim=1))
            phases = F.conv2d(joined, weight, bias, padding=padding).float()
            phases.add_(self._remainder)
            pixels = pixels.float()
            phases.view(-1, image.shape[1], self._scale**2, *image.shape[2:]).add_(pixels[:, :, None])
        for part in self._ring:
            part.mend(phases, feature)
        return F.pixel_shuffle(phases, self._scale)

    def _minus_pixel(self, weight: Tensor) -> Tensor:
        """Kernels (3R^2,3,k,k) that subtract the low-resolution pixel from all of its phases."""
        colours = self._convs[-1].out_channels
        minus = weight.new_zeros(weight.shape[0], colours, *weight.shape[2:])
        phases = torch.arange(weight.shape[0])
        minus[phases, phases // self._scale**2, self._reach, self._reach] = -1
        return minus

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
    """A side or a corner: its kernel, the pixels that it reads and those that it makes."""

    weight: Tensor
    bias: Tensor
    reads: tuple[slice, slice]
    makes: tuple[slice, slice]
    padding: tuple[int, int]

    def mend(self, phases: Tensor, feature: Tensor) -> None:
        """Overwrite its pixels in ``phases`` (N,3R^2,h,w)."""
        region = feature[:, :, *self.reads]
        phases[:, :, *self.makes] = F.conv2d(region, self.weight, self.bias, padding=self.padding)


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
