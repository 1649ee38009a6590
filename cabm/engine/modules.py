"""What the engine takes from the modules of a trained backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cabm.engine.grid import Grid, Storage
from cabm.engine.onednn import IntegerConv
from cabm.engine.packing import PackedConv, Quantizer, Row
from cabm.quant.layers import PamsActivation, QuantConv2d
from cabm.quant.skip import QuantizedSkip


def array(values: Tensor) -> np.ndarray:
    """Return float32 numbers of a parameter or buffer as an array of their own."""
    return values.detach().float().cpu().contiguous().numpy().copy()


def quantizer(activation: nn.Module) -> Quantizer:
    """Return the clip values of a module that quantizes activations."""
    alphas = tuple(activation.alpha.detach().tolist())
    if isinstance(activation, PamsActivation):
        return Quantizer(alphas, (activation.bits,), activation.unsigned)
    return Quantizer(alphas, activation.search_space, activation.unsigned, activation.position)


def grid_of(activation: nn.Module, row: Row, storage: Storage) -> Grid:
    """Return the byte grid of a module that quantizes activations, at the bits of ``row``."""
    return quantizer(activation).grid(row, storage)


def skip_quantizer(block: nn.Module) -> Quantizer:
    """Return the quantizer of a residual block's skip connection: its own, or the first convolution's."""
    return quantizer(block.skip.act if isinstance(block.skip, QuantizedSkip) else block.act1)


def weight_bits_at(conv: QuantConv2d, bits: int) -> int:
    """Return the width of a convolution's weights when its input has ``bits``."""
    return bits if conv.weight_bits == "same" else int(conv.weight_bits)


def pack_conv(
    conv: QuantConv2d,
    reads: Quantizer,
    storage: Storage,
    *,
    outputs: slice = slice(None),
    pack: Callable[..., Any] | None = None,
    after: tuple[np.ndarray, np.ndarray] | None = None,
) -> PackedConv:
    """Pack the weights of a quantized convolution, at every width that they can have.

    Args:
        conv: the convolution.
        reads: the quantizer of its input.
        storage: how the input's codes are stored.
        outputs: the output channels to compute; all of them for grouped convolutions.
        pack: packs weights, called like `cabm.engine.fused.Kernel.pack`; None: for oneDNN.
        after: see `PackedConv`.
    """
    packs, scales = {}, {}
    for bits in sorted({weight_bits_at(conv, bits) for bits in reads.widths}):
        with torch.no_grad():
            codes, scale = conv.codes(bits)
        packs[bits] = (IntegerConv if pack is None else pack)(
            codes[outputs].numpy(),
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            shifted=storage.value[1] != 0,
        )
        scale = array(scale).reshape(-1)
        scales[bits] = scale[outputs] if len(scale) > 1 else scale
    bias = None if conv.bias is None else array(conv.bias[outputs])
    width = "same" if conv.weight_bits == "same" else int(conv.weight_bits)
    return PackedConv(packs, scales, width, bias, after)
