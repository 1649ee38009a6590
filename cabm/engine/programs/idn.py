"""The integer program of IDN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine import layer_numbers as numbering
from cabm.engine.chains import Chain, Place, own
from cabm.engine.elementwise import encode
from cabm.engine.ends import Ends
from cabm.engine.float_conv import FloatConv
from cabm.engine.float_rows import Layer
from cabm.engine.fused import FloatWeights, Kernel, kernel_for, packing
from cabm.engine.grid import Storage
from cabm.engine.layer_numbers import (
    JOIN,
    LEAKY_TO_BOTH,
    LEAKY_TO_CODES,
    LEAKY_TO_FLOATS,
    SINGLE_TO_BOTH,
    ZERO,
)
from cabm.engine.packing import BoundConv, PackedConv, Row, grid_of
from cabm.engine.tensors import through
from cabm.models.idn import IDN, SLOPE, DistillationBlock, leaky


@dataclass(frozen=True)
class _Block:
    """One distillation block at given bits.

    Attributes:
        convs: the first five convolutions; of the third, the channels that the fourth reads.
        distilling: the third convolution's channels that skip the last three convolutions.
        last: the sixth convolution's channels to which the block's input is added, and those to which the
            distilled channels are.
        compression: the 1x1 convolution of these sums.
    """

    convs: tuple[BoundConv, ...]
    distilling: BoundConv
    last: tuple[BoundConv, BoundConv]
    compression: FloatConv | FloatWeights

    def run(self, x: Tensor) -> Tensor:
        """Return the block's output (N,n,h,w) float32."""
        first, second, third, fourth, fifth = self.convs
        codes = _leaky_codes(first.to_float(encode(x, first.grid)), second)
        codes = _leaky_codes(second.to_float(codes), third)
        distilled = leaky(self.distilling.to_float(codes))
        codes = _leaky_codes(third.to_float(codes), fourth)
        codes = _leaky_codes(fourth.to_float(codes), fifth)
        codes = _leaky_codes(fifth.to_float(codes), self.last[0])
        features = (leaky(each.to_float(codes)) for each in self.last)
        joined = [a.add_(b) for a, b in zip(features, (x, distilled), strict=True)]
        return self.compression(torch.cat(joined, dim=1))


class _Plan(NamedTuple):
    """Entry and blocks at given bits."""

    entry: tuple[BoundConv, BoundConv]
    blocks: list[_Block]


class IdnProgram:
    """A trained IDN: entry and distillation blocks on bytes; compressions and tail in float.

    The compressions stay in float32 with AMX, too. A code that is rounded differently changes many after
    it: images of bfloat16 leave the quality as it is, but change pixels by 0.2 to 0.35 levels on average.

    Args:
        model: of any quantized kind, with float tail.
        ends: how the float convolutions run.
    """

    def __init__(self, model: IDN, ends: Ends) -> None:
        self._model = model
        self._kernel = kernel_for(model)
        self._packing = packing(self._kernel)
        self._entry = tuple(PackedConv(conv, **self._packing) for conv in (model.entry1, model.entry2))
        self._blocks = [self._pack(block) for block in model.body]
        tail = as_convolution(model.tail)
        self._rows = ends.rows(
            [Layer(*(each.numpy() for each in tail), shuffle=model.scale, weight_bytes=2)]
        )
        self._tail = FloatConv(*tail, ends.dtype) if self._rows is None else None

    def _pack(self, block: DistillationBlock) -> tuple[list[PackedConv], FloatConv | FloatWeights]:
        everything, n = slice(None), block.compression.out_channels
        kept, distilled = slice(0, block.num_kept), slice(block.num_kept, None)
        parts = [(block.conv1, everything), (block.conv2, everything), (block.conv3, kept)]
        parts += [(block.conv4, everything), (block.conv5, everything), (block.conv3, distilled)]
        parts += [(block.conv6, slice(0, n)), (block.conv6, slice(n, None))]
        packed = [PackedConv(conv, outputs, **self._packing) for conv, outputs in parts]
        conv = block.compression
        if self._kernel is not None:
            return packed, self._kernel.pack_floats(
                conv.weight.detach()[:, :, 0, 0].numpy(),
                conv.bias.detach().numpy(),
                [n, conv.in_channels - n],
            )
        return packed, FloatConv(conv.weight, conv.bias, torch.float32)

    def plan(self, row: Row) -> _Plan | Chain:
        """Return entry and blocks at the bits of ``row``."""
        model, blocks = self._model, []
        for block, (packed, compression) in zip(model.body, self._blocks, strict=True):
            acts = (block.act1, block.act2, block.act3, block.act4, block.act5, block.act6)
            grids = [grid_of(act, row, Storage.SHIFTED) for act in acts]
            grids = [*grids[:5], grids[2], grids[5], grids[5]]
            *convs, distilling, low, high = (conv.at(g) for conv, g in zip(packed, grids, strict=True))
            blocks.append(_Block(tuple(convs), distilling, (low, high), compression))
        entry1, entry2 = self._entry
        entry = (
            entry1.at(grid_of(model.entry1_act, row, Storage.POSITIVE)),  # pixels are not negative
            entry2.at(grid_of(model.entry2_act, row, Storage.SHIFTED)),
        )
        plan = _Plan(entry, blocks)
        return plan if self._kernel is None else _chain(self._kernel, plan)

    def run(self, x: Tensor, plan: _Plan | Chain) -> Tensor:
        """Upscale one tile; see `cabm.engine.programs.Program`."""
        hidden = through(plan.run, x) if isinstance(plan, Chain) else _run(x, plan)
        scale = self._model.scale
        bicubic = F.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False)
        if self._rows is not None:
            return through(self._rows, hidden, base=bicubic)
        return F.pixel_shuffle(self._tail(hidden).float(), scale).add_(bicubic)


def _run(x: Tensor, plan: _Plan) -> Tensor:
    """Run entry and blocks layer by layer."""
    entry1, entry2 = plan.entry
    codes = _leaky_codes(entry1.to_float(encode(x, entry1.grid)), entry2)
    hidden = leaky(entry2.to_float(codes))
    for block in plan.blocks:
        hidden = block.run(hidden)
    return hidden


def _chain(kernel: Kernel, plan: _Plan) -> Chain:
    """Return entry and blocks as a chain. Images of all that a compression reads replace concatenations."""
    entry1, entry2 = plan.entry
    n, distilled = entry2.conv.channels, plan.blocks[0].distilling.conv.channels
    chain = Chain(kernel, n)
    pixels, first = chain.codes(3, entry1.grid.zero), chain.codes(n, ZERO)
    images = [first, *(chain.codes(conv.conv.channels, ZERO) for conv in plan.blocks[0].convs)]
    joined = [chain.floats(n, distilled) for _ in range(2)]  # a compression reads one and writes the other
    beside = kernel.padded(n)
    entered = images[4]  # of n channels, too, and not in use yet
    chain.encode(pixels, entry1.grid)
    chain.convolve(entry1, LEAKY_TO_CODES, pixels, own(entry2.grid, SLOPE), target=entered)
    numbers = own(plan.blocks[0].convs[0].grid, SLOPE)
    chain.convolve(entry2, LEAKY_TO_BOTH, entered, numbers, target=first, floats=Place(joined[0]))
    for index, block in enumerate(plan.blocks):
        here, there = joined[index % 2], joined[1 - index % 2]
        for conv, following, source, target in zip(
            block.convs, [*block.convs[1:], block.last[0]], images[:-1], images[1:], strict=True
        ):
            chain.convolve(conv, LEAKY_TO_CODES, source, own(following.grid, SLOPE), target=target)
        numbers = {numbering.SLOPE: SLOPE, numbering.AFTER: 1}
        chain.convolve(block.distilling, LEAKY_TO_FLOATS, images[2], numbers, floats=Place(here, beside))
        for conv, place in zip(block.last, (Place(here), Place(here, beside)), strict=True):
            chain.convolve(conv, JOIN, images[5], numbers, floats=place, addend=place)
        last = index == len(plan.blocks) - 1
        grid = plan.blocks[0 if last else index + 1].convs[0].grid
        to = Place(chain.result if last else there)
        chain.pointwise(block.compression, SINGLE_TO_BOTH, here, own(grid), target=first, floats=to)
    return chain


def _leaky_codes(x: Tensor, following: BoundConv) -> Tensor:
    return encode(x, following.grid, slope=SLOPE)


def as_convolution(deconv: torch.nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution that, before a PixelShuffle, equals a transposed one.

    With stride s, output row s i + p reads input row i + j through kernel row p + padding - s j. Each phase
    p is therefore a convolution by every s-th row and column of the kernel.
    """
    stride, padding = deconv.stride[0], deconv.padding[0]
    kernel = deconv.weight.detach().transpose(0, 1)  # (3,n,k,k)
    size = kernel.shape[-1]
    # the offsets j with 0 <= p + padding - s j < k for some phase p
    reach = max((padding + stride - 1) // stride, (size - 1 - padding) // stride)
    taps = torch.arange(-reach, reach + 1)
    rows = torch.arange(stride)[:, None] + padding - stride * taps  # (s,2*reach+1) of the kernel
    valid = ((rows >= 0) & (rows < size)).to(kernel.dtype)
    rows = rows.clamp(0, size - 1)
    picked = kernel[:, :, rows][:, :, :, :, rows]  # (3,n,s,t,s,t)
    picked = picked * valid[:, :, None, None] * valid
    weight = picked.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    return weight, deconv.bias.detach().repeat_interleave(stride**2)
