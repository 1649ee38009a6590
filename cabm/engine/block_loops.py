"""Residual blocks of 3x3 convolutions on bytes, compiled by numba to one call.

All blocks of a tile run in one call: between layers no operator is launched, no memory is allocated and no
lock is taken, so small tiles are as fast per pixel as large ones. How a layer is convolved
depends on the form (`cabm.engine.forms`).

Images are bytes, channels last: (height + 2, width + 2, channels), height and width rounded up to even
numbers. Code 0 around the image takes the place of zero padding, so convolutions test no border.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cabm.engine.layer_numbers import ADD_TO_CODES, ADD_TO_FLOATS, TO_CODES, ZERO
from cabm.machine.compiled import Loop


def residual_blocks(
    run_layer: Loop, lanes: int, scratch_bytes: tuple[int, int], sources: Sequence[str]
) -> Loop:
    """Return the function to compile.

    It closes over a checksum of the code that emits a layer: numba's cache of compiled functions compares
    closures, and the age of this file, but not of the modules that it imports.

    Args:
        run_layer: convolves all pixels of an image, with the arguments (lanes, epilogue, layer, images,
            height, width, scratch). ``layer`` holds weights, starts, factors, biases and numbers (below);
            ``images`` holds source, target, the next block's input and the float result.
        lanes: 32-bit numbers per register.
        scratch_bytes: of the layer's working memory: per channel, and besides.
        sources: files of the code that emits a layer.
    """
    emitters = zlib.crc32(b"".join(Path(file).read_bytes() for file in sources))
    per_channel, besides = scratch_bytes

    def run_blocks(codes, skip_codes, height, width, weights, starts, factors, biases, numbers, out):
        """Run B residual blocks (conv, ReLU, conv, add) on codes; the skip connection is in codes, too.

        Args:
            codes: flat uint8 (height * width * C), channels last: the first block's input, with `ZERO`. C
                is a multiple of the form's group.
            skip_codes: the same input on the grid of the first block's skip connection.
            height, width: in pixels.
            weights: (2B,) addresses of the convolutions' weights, first and second of each block, packed
                for the form.
            starts: (2B, C) int32 added to the sums.
            factors, biases: (2B, C) float32; a convolution's value is sum * factor + bias.
            numbers: (2B, NUMBERS) float32. The code of a value is value * GAIN * INVERSE, rounded and
                clipped to LOW..HIGH. In a block's second row, STEP is the step of these codes and SKIP_STEP
                that of the skip connection. Their sum is encoded twice, for the next block to convolve
                (NEXT_READ) and to add to (NEXT_SKIP): an inverse step and the largest code of either sign.
                PRODUCTS is WIDE, or one of the kinds for which the form packs weights of few bits.
            out: flat float32, as long as ``codes``: the last block's sum, not encoded.
        """
        _ = emitters
        channels = starts.shape[1]
        pitch = (width + 2 + width % 2) * channels
        size = (height + 2 + height % 2) * pitch
        read, skip, hidden = (
            np.full(size, ZERO, np.uint8),
            np.empty(size, np.uint8),
            np.zeros(size, np.uint8),
        )
        scratch = np.empty(per_channel * channels + besides, np.uint8)
        row = width * channels
        for y in range(height):
            start = (y + 1) * pitch + channels
            read[start : start + row] = codes[y * row : (y + 1) * row]
            skip[start : start + row] = skip_codes[y * row : (y + 1) * row]
        last = weights.size - 1
        for i in range(weights.size):
            epilogue, source, target = TO_CODES, read, hidden
            if i % 2 == 1:  # in place: a pixel's sum reads that pixel of the skip connection only
                epilogue, source, target = ADD_TO_CODES if i < last else ADD_TO_FLOATS, hidden, skip
            layer = weights[i], starts[i], factors[i], biases[i], numbers[i]
            run_layer(lanes, epilogue, layer, (source, target, read, out), height, width, scratch)

    return run_blocks
