"""The first convolution of a network."""

from __future__ import annotations

import torch
from torch import nn

from cabm.engine.float_conv import FloatConv
from cabm.engine.layerwise import OnTensors
from cabm.engine.modules import array
from cabm.engine.pixel_conv import pack_pixel_conv
from cabm.engine.programs import Convolution


def head_conv(conv: nn.Conv2d, slope: float = 1.0) -> Convolution:
    """Return the convolution of the image, followed by an activation: compiled, or PyTorch's.

    Args:
        conv: reads three channels.
        slope: factor on negative results.
    """
    bias = None if conv.bias is None else array(conv.bias)
    compiled = pack_pixel_conv(array(conv.weight), bias, slope)
    if compiled is not None:
        return compiled
    return OnTensors(FloatConv(conv.weight, conv.bias, torch.float32), slope)
