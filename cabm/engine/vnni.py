"""Residual blocks of 3x3 convolutions on bytes, compiled by numba for processors with VNNI.

All blocks of a tile run in one call: between layers no operator is launched, no memory is allocated and no
lock is taken, so small tiles are as fast per pixel as large ones. Numba compiles the loops over pixels and
layers below; `cabm.engine.vnni_ir` writes the innermost loop in LLVM's own language.

Images are bytes, channels last: (height + 2, width + 2, channels). A frame of one pixel of code 0 takes
the place of zero padding, so convolutions need no test for the border.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numba import types
from numba.extending import intrinsic, register_jitable

from cabm.engine import vnni_ir
from cabm.engine.vnni_ir import ADD_TO_CODES, ADD_TO_FLOATS, GROUP, PIXELS, TO_CODES, ZERO
from cabm.machine.compiled import Loop


@intrinsic
def _convolve(
    _,
    count,
    epilogue,
    source,
    row,
    channels,
    weights,
    starts,
    factors,
    biases,
    numbers,
    target,
    following,
    floats,
):
    """Convolve adjacent pixels to a group of output channels; see `cabm.engine.vnni_ir.Operands`."""
    names = vnni_ir.Operands._fields
    kinds = (types.uintp if name in vnni_ir.ADDRESSES else types.intp for name in names)

    def generate(target, builder, signature, values):
        vnni_ir.emit_convolution(builder, values)
        return target.get_dummy_value()

    return types.void(*kinds), generate


@register_jitable
def _run_layer(
    epilogue, source, weights, starts, factors, biases, numbers, target, following, floats, height, width
):
    """Convolve all pixels of a framed byte image; see `residual_blocks`."""
    channels = starts.size
    pitch = (width + 2) * channels
    for first in range(0, channels, GROUP):
        for y in range(height):
            x = 0
            for left in range(-(-width // PIXELS), 0, -1):
                count = -(-(width - x) // left)  # as even as possible
                here = y * pitch + x * channels
                _convolve(
                    count,
                    epilogue,
                    source.ctypes.data + np.uintp(here),
                    pitch,
                    channels,
                    weights + np.uintp(first * 9 * channels),
                    starts.ctypes.data + np.uintp(4 * first),
                    factors.ctypes.data + np.uintp(4 * first),
                    biases.ctypes.data + np.uintp(4 * first),
                    numbers.ctypes.data,
                    target.ctypes.data + np.uintp(here + pitch + channels + first),
                    following.ctypes.data + np.uintp(here + pitch + channels + first),
                    floats.ctypes.data + np.uintp(4 * ((y * width + x) * channels + first)),
                )
                x += count


@register_jitable
def _frame(image, height, width, channels, byte):
    """Fill the outermost pixels of a framed image."""
    pitch = (width + 2) * channels
    image[:pitch] = byte
    image[(height + 1) * pitch :] = byte
    for y in range(1, height + 1):
        image[y * pitch : y * pitch + channels] = byte
        image[(y + 1) * pitch - channels : (y + 1) * pitch] = byte


def residual_blocks() -> Loop:
    """Return the function to compile.

    It closes over a checksum of `cabm.engine.vnni_ir`: numba's cache of compiled functions compares
    closures, and the age of this file, but not of the modules that it imports.
    """
    emitter = zlib.crc32(Path(vnni_ir.__file__).read_bytes())

    def run_blocks(codes, skip_codes, height, width, weights, starts, factors, biases, numbers, out):
        """Run B residual blocks (conv, ReLU, conv, add) on codes; the skip connection is in codes, too.

        Args:
            codes: flat uint8 (height * width * C), channels last: the first block's input, with `ZERO`. C
                is a multiple of GROUP.
            skip_codes: the same input on the grid of the first block's skip connection.
            height, width: in pixels.
            weights: (2B,) addresses of the convolutions' int8 weights, first and second of each block, in
                the order (C / GROUP, 3, 3, C / 4, GROUP, 4): output group, row, column, inputs, output,
                input.
            starts: (2B, C) int32 initial values of the sums.
            factors, biases: (2B, C) float32; a convolution's value is sum * factor + bias.
            numbers: (2B, NUMBERS) float32. The code of a value is value * GAIN * INVERSE, rounded and
                clipped to LOW..HIGH. In a block's second row, STEP is the step of these codes and
                SKIP_STEP that of the skip connection. Their sum is encoded twice, for the next block to
                convolve (NEXT_READ) and to add to (NEXT_SKIP): an inverse step and the largest code.
            out: flat float32, as long as ``codes``: the last block's sum, not encoded.
        """
        _ = emitter
        channels = starts.shape[1]
        size = (height + 2) * (width + 2) * channels
        read, skip, hidden = np.empty(size, np.uint8), np.empty(size, np.uint8), np.empty(size, np.uint8)
        _frame(read, height, width, channels, ZERO)
        _frame(hidden, height, width, channels, 0)
        row = width * channels
        for y in range(height):
            start = (y + 1) * (row + 2 * channels) + channels
            read[start : start + row] = codes[y * row : (y + 1) * row]
            skip[start : start + row] = skip_codes[y * row : (y + 1) * row]
        last = weights.size - 1
        for i in range(weights.size):
            epilogue, source, target = TO_CODES, read, hidden
            if i % 2 == 1:  # in place: a pixel's sum reads that pixel of the skip connection only
                epilogue, source, target = ADD_TO_CODES if i < last else ADD_TO_FLOATS, hidden, skip
            _run_layer(
                epilogue,
                source,
                weights[i],
                starts[i],
                factors[i],
                biases[i],
                numbers[i],
                target,
                read,
                out,
                height,
                width,
            )

    return run_blocks
