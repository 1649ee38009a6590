"""The integer program of IDN."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine.elementwise import encode
from cabm.engine.float_conv import FloatConv
from cabm.engine.grid import Storage
from cabm.engine.packing import BoundConv, PackedConv, Row, grid_of
from cabm.models.idn import IDN, SLOPE, DistillationBlock, leaky


@dataclass(frozen=True)
class _Block:
    """One distillation block at given bits: six convolutions, the third in two parts."""

    convs: tuple[BoundConv, ...]
    distilling: BoundConv  # the third convolution's channels that skip the last three convolutions
    compression: FloatConv

    def run(self, x: Tensor) -> Tensor:
        """Return the block's output (N,n,h,w) float32."""
        first, second, third, fourth, fifth, sixth = self.convs
        codes = _leaky_codes(first.to_float(encode(x, first.grid)), second)
        codes = _leaky_codes(second.to_float(codes), third)
        distilled = leaky(self.distilling.to_float(codes))
        codes = _leaky_codes(third.to_float(codes), fourth)
        codes = _leaky_codes(fourth.to_float(codes), fifth)
        codes = _leaky_codes(fifth.to_float(codes), sixth)
        feature = leaky(sixth.to_float(codes))
        return self.compression(feature.add_(torch.cat([x, distilled], dim=1)))


class IdnProgram:
    """A trained IDN: entry and distillation blocks on bytes; compressions and tail in float.

    The compressions are followed by quantizers and stay in float32: a code that is rounded differently
    would change many codes after it.

    Args:
        model: of any quantized kind, with float tail.
        float_dtype: type that the tail computes in.
    """

    def __init__(self, model: IDN, float_dtype: torch.dtype) -> None:
        self._model = model
        self._entry = (PackedConv(model.entry1), PackedConv(model.entry2))
        self._blocks = [self._pack(block) for block in model.body]
        self._tail = FloatConv(*as_convolution(model.tail), float_dtype)

    @staticmethod
    def _pack(block: DistillationBlock) -> tuple[list[PackedConv], PackedConv, FloatConv]:
        convs = [block.conv1, block.conv2, block.conv3, block.conv4, block.conv5, block.conv6]
        packed = [PackedConv(conv) for conv in convs]
        packed[2] = PackedConv(block.conv3, slice(0, block.num_kept))
        distilling = PackedConv(block.conv3, slice(block.num_kept, None))
        compression = FloatConv(block.compression.weight, block.compression.bias, torch.float32)
        return packed, distilling, compression

    def plan(self, row: Row) -> tuple[tuple[BoundConv, BoundConv], list[_Block]]:
        """Return entry and blocks at the bits of ``row``."""
        model, blocks = self._model, []
        for block, (packed, distilling, compression) in zip(model.body, self._blocks, strict=True):
            acts = (block.act1, block.act2, block.act3, block.act4, block.act5, block.act6)
            grids = [grid_of(act, row, Storage.SHIFTED) for act in acts]
            convs = tuple(conv.at(grid) for conv, grid in zip(packed, grids, strict=True))
            blocks.append(_Block(convs, distilling.at(grids[2]), compression))
        entry1, entry2 = self._entry
        entry = (
            entry1.at(grid_of(model.entry1_act, row, Storage.POSITIVE)),  # pixels are not negative
            entry2.at(grid_of(model.entry2_act, row, Storage.SHIFTED)),
        )
        return entry, blocks

    def run(self, x: Tensor, plan: tuple[tuple[BoundConv, BoundConv], list[_Block]]) -> Tensor:
        """Upscale one tile; see `cabm.engine.programs.Program`."""
        (entry1, entry2), blocks = plan
        codes = _leaky_codes(entry1.to_float(encode(x, entry1.grid)), entry2)
        hidden = leaky(entry2.to_float(codes))
        for block in blocks:
            hidden = block.run(hidden)
        scale = self._model.scale
        bicubic = F.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False)
        return F.pixel_shuffle(self._tail(hidden).float(), scale).add_(bicubic)


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
