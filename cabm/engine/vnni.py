"""The direct form of residual blocks: sums of byte products, for processors with VNNI.

Numba compiles the loop over pixels below; `cabm.engine.vnni_ir` writes the innermost loop in LLVM's own
language.
"""

from __future__ import annotations

import numpy as np
import torch
from numba.extending import intrinsic, overload
from torch import Tensor

from cabm.engine import vnni_ir
from cabm.engine.emitter import typed_call


def pack(codes: Tensor, group: int) -> Tensor:
    """Return int8 weights (O / group, 3, 3, I / 4, group, 4) for whole numbers (O,I,3,3) in -127..127."""
    outputs, inputs, height, width = codes.shape
    groups = codes.view(outputs // group, group, inputs // 4, 4, height, width)
    return groups.permute(0, 4, 5, 2, 1, 3).to(torch.int8).contiguous()


@intrinsic(prefer_literal=True)
def _convolve(
    _,
    lanes,
    count,
    source,
    row,
    channels,
    weights,
    starts,
    epilogue,
    factors,
    biases,
    numbers,
    target,
    following,
    floats,
):
    """Convolve adjacent pixels to a group of output channels; see `cabm.engine.vnni_ir.Operands`."""
    return typed_call(lanes, vnni_ir.Operands, vnni_ir.INTEGERS, vnni_ir.emit_convolution)


def run_layer(lanes, epilogue, layer, images, height, width, scratch):
    """Convolve all pixels of a framed byte image; see `cabm.engine.block_loops`."""
    raise NotImplementedError("only compiled loops call this")


@overload(run_layer, prefer_literal=True)
def _run_layer(lanes, epilogue, layer, images, height, width, scratch):
    pixels = vnni_ir.PIXELS[lanes.literal_value]
    group = vnni_ir.REGISTERS * lanes.literal_value

    def loop(lanes, epilogue, layer, images, height, width, scratch):
        weights, starts, factors, biases, numbers = layer
        source, target, following, floats = images
        channels = starts.size
        pitch = (width + 2 + width % 2) * channels
        for first in range(0, channels, group):
            for y in range(height):
                x = 0
                for left in range(-(-width // pixels), 0, -1):
                    count = -(-(width - x) // left)  # as even as possible
                    here = y * pitch + x * channels
                    inner = here + pitch + channels + first
                    _convolve(
                        lanes,
                        count,
                        source.ctypes.data + np.uintp(here),
                        pitch,
                        channels,
                        weights + np.uintp(first * 9 * channels),
                        starts.ctypes.data + np.uintp(4 * first),
                        epilogue,
                        factors.ctypes.data + np.uintp(4 * first),
                        biases.ctypes.data + np.uintp(4 * first),
                        numbers.ctypes.data,
                        target.ctypes.data + np.uintp(inner),
                        following.ctypes.data + np.uintp(inner),
                        floats.ctypes.data + np.uintp(4 * ((y * width + x) * channels + first)),
                    )
                    x += count

    return loop
