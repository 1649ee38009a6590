"""IDN's program."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.engine.bicubic_base import upscale
from cabm.engine.building.tails import TorchTail
from cabm.engine.ends import Ends
from cabm.engine.float_conv import FloatConv
from cabm.engine.float_rows import Layer
from cabm.engine.fused import Kernel, kernel_for, packing
from cabm.engine.grid import Storage
from cabm.engine.layerwise import OnTensors
from cabm.engine.modules import array, pack_conv, quantizer
from cabm.engine.packing import PackedConv, Quantizer
from cabm.engine.programs.idn import DistillationParts, IdnProgram
from cabm.engine.tensors import as_array, as_tensor
from cabm.models import idn
from cabm.models.idn import IDN, SLOPE


def program(model: IDN, ends: Ends) -> IdnProgram:
    """Return entry and blocks on bytes; compressions and tail in float.

    Args:
        model: of any quantized kind, with float tail.
        ends: how the float convolutions run.
    """
    kernel = kernel_for(model)
    packs = packing(kernel)
    reads = quantizer(model.entry1_act), quantizer(model.entry2_act)
    entry1 = pack_conv(model.entry1, reads[0], Storage.POSITIVE, **packs)
    entry2 = pack_conv(model.entry2, reads[1], Storage.SHIFTED, **packs)
    weight, bias = as_convolution(model.tail)
    rows = ends.rows([Layer(array(weight), array(bias), shuffle=model.scale, weight_bytes=2)])
    return IdnProgram(
        scale=model.scale,
        slope=SLOPE,
        kernel=kernel,
        entry=(entry1, entry2),
        entry_quantizers=reads,
        blocks=tuple(_block(block, kernel, packs) for block in model.body),
        rows=rows,
        tail=_torch_tail(FloatConv(weight, bias, ends.dtype), model.scale) if rows is None else None,
    )


def _block(block: idn.DistillationBlock, kernel: Kernel | None, packs: dict) -> DistillationParts:
    acts = (block.act1, block.act2, block.act3, block.act4, block.act5, block.act6)
    reads = tuple(map(quantizer, acts))

    def packed(conv: nn.Module, quantizer: Quantizer, *outputs: int | None) -> PackedConv:
        return pack_conv(conv, quantizer, Storage.SHIFTED, outputs=slice(*outputs), **packs)

    conv, kept = block.compression, block.num_kept
    n = conv.out_channels
    outputs = (None, None, kept, None, None)  # up to which channel
    convs = (block.conv1, block.conv2, block.conv3, block.conv4, block.conv5)
    if kernel is None:
        compression = OnTensors(FloatConv(conv.weight, conv.bias, torch.float32))
    else:
        parts = [n, conv.in_channels - n]
        compression = kernel.pack_floats(array(conv.weight)[:, :, 0, 0], array(conv.bias), parts)
    return DistillationParts(
        quantizers=reads,
        convs=tuple(packed(*each) for each in zip(convs, reads[:5], outputs, strict=True)),
        distilling=packed(block.conv3, reads[2], kept, None),
        last=(packed(block.conv6, reads[5], n), packed(block.conv6, reads[5], n, None)),
        compression=compression,
    )


def _torch_tail(conv: FloatConv, scale: int) -> TorchTail:
    def tail(feature: Tensor, image: Tensor) -> Tensor:
        residual = F.pixel_shuffle(conv(feature).float(), scale)
        return residual.add_(as_tensor(upscale(as_array(image), scale)))

    return TorchTail(tail)


def as_convolution(deconv: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
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
