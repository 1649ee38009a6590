"""The Winograd form of residual blocks, F(2x2,3x3) in exact integers, for processors without VNNI.

A tile of 2x2 outputs takes 16 products per pair of channels where the direct sum takes 36 (Lavin and Gray,
2016). The transformed inputs (at most 4 * 255) and 4 times the transformed kernels (at most 9 * 127) fit 16
bits; products and sums fit 32 bits, up to `MOST_CHANNELS`, and are exactly 4 times the direct sums.

Tiles are computed in strips of `STRIP`, which a core's caches hold.
"""

from __future__ import annotations

import numpy as np
import torch
from numba.extending import intrinsic, overload
from torch import Tensor

from cabm.engine import winograd_ir
from cabm.engine.emitter import typed_call
from cabm.engine.winograd_ir import POSITIONS, REGISTERS, STRIP

UNIT = 4
"""The sums are this many times the convolution."""

MOST_CHANNELS = (2**31 - 1) // (UNIT * 9 * 255 * 127)


def scratch_bytes(lanes: int) -> tuple[int, int]:
    """Return the bytes of a layer's working memory: per channel, and besides."""
    sums = 4 * REGISTERS * lanes * STRIP
    return 2 * POSITIONS * STRIP, (POSITIONS + 4) * sums + 64


def pack(codes: Tensor, group: int) -> Tensor:
    """Return int16 weights (O / group, 16, I / 2, group, 2) for whole numbers (O,I,3,3) in -127..127."""
    outputs, inputs = codes.shape[:2]
    matrix = torch.tensor([[2.0, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])
    transformed = matrix @ codes.float() @ matrix.T
    groups = transformed.view(outputs // group, group, inputs // 2, 2, POSITIONS)
    return groups.permute(0, 4, 2, 1, 3).to(torch.int16).contiguous()


@intrinsic(prefer_literal=True)
def _transform_input(_, lanes, source, row, channels, transformed):
    """Transform the input of one tile; see `cabm.engine.winograd_ir.Input`."""
    return typed_call(lanes, winograd_ir.Input, {"row", "channels"}, winograd_ir.emit_input)


@intrinsic(prefer_literal=True)
def _multiply(_, lanes, count, transformed, pairs, weights, products):
    """Multiply adjacent tiles at one position; see `cabm.engine.winograd_ir.Product`."""
    return typed_call(lanes, winograd_ir.Product, {"count", "pairs"}, winograd_ir.emit_product)


@intrinsic(prefer_literal=True)
def _transform_output(_, lanes, products, starts, sums):
    """Transform the products of one tile to sums; see `cabm.engine.winograd_ir.Output`."""
    return typed_call(lanes, winograd_ir.Output, set(), winograd_ir.emit_output)


@intrinsic(prefer_literal=True)
def _finish(_, lanes, count, sums, channels, epilogue, factors, biases, numbers, target, following, floats):
    """Finish adjacent pixels of one row; see `cabm.engine.winograd_ir.Row`."""
    return typed_call(lanes, winograd_ir.Row, {"count", "channels", "epilogue"}, winograd_ir.emit_row)


def run_layer(lanes, epilogue, layer, images, height, width, scratch):
    """Convolve all pixels of a framed byte image; see `cabm.engine.block_loops`."""
    raise NotImplementedError("only compiled loops call this")


@overload(run_layer, prefer_literal=True)
def _run_layer(lanes, epilogue, layer, images, height, width, scratch):
    group, block = REGISTERS * lanes.literal_value, winograd_ir.TILES[lanes.literal_value]

    def loop(lanes, epilogue, layer, images, height, width, scratch):
        weights, starts, factors, biases, numbers = layer
        source, target, following, floats = images
        channels = starts.size
        pitch = (width + 2 + width % 2) * channels
        transformed = (scratch.ctypes.data + np.uintp(63)) & ~np.uintp(63)
        position = 2 * STRIP * channels  # bytes from one position of the transform to the next
        products = transformed + np.uintp(POSITIONS * position)
        sums = products + np.uintp(POSITIONS * STRIP * group * 4)
        tiles = -(-width // 2)
        for y in range(0, height, 2):
            tile = 0
            for left in range(-(-tiles // STRIP), 0, -1):
                count = -(-(tiles - tile) // left)  # as even as possible
                for i in range(count):
                    here = y * pitch + 2 * (tile + i) * channels
                    _transform_input(
                        lanes,
                        source.ctypes.data + np.uintp(here),
                        pitch,
                        channels,
                        transformed + np.uintp(64 * i),
                    )
                for first in range(0, channels, group):
                    for p in range(POSITIONS):
                        for i in range(0, count, block):
                            _multiply(
                                lanes,
                                min(block, count - i),
                                transformed + np.uintp(p * position + 64 * i),
                                channels // 2,
                                weights + np.uintp(2 * channels * (first * POSITIONS + p * group)),
                                products + np.uintp(4 * group * (p * STRIP + i)),
                            )
                    for i in range(count):
                        _transform_output(
                            lanes,
                            products + np.uintp(4 * group * i),
                            starts.ctypes.data + np.uintp(4 * first),
                            sums + np.uintp(8 * group * i),
                        )
                    for row in range(min(2, height - y)):
                        x = 2 * tile
                        inner = (y + row + 1) * pitch + (x + 1) * channels + first
                        _finish(
                            lanes,
                            min(2 * count, width - x),
                            sums + np.uintp(8 * STRIP * group * row),
                            channels,
                            epilogue,
                            factors.ctypes.data + np.uintp(4 * first),
                            biases.ctypes.data + np.uintp(4 * first),
                            numbers.ctypes.data,
                            target.ctypes.data + np.uintp(inner),
                            following.ctypes.data + np.uintp(inner),
                            floats.ctypes.data + np.uintp(4 * (((y + row) * width + x) * channels + first)),
                        )
                tile += count

    return loop
