"""The Winograd form, F(2x2,3x3) in exact integers, for processors without VNNI.

A tile of 2x2 outputs takes 16 products per pair of channels where the direct sum takes 36 (Lavin and Gray,
2016). The transformed inputs (at most 4 * 255) and 4 times the transformed kernels (at most 9 * 127) fit 16
bits; products and sums fit 32 bits, up to a number of channels (`cabm.engine.forms`), and are exactly 4
times the direct sums.

Tiles are computed in strips of `STRIP`, which a core's caches hold. Layers of few bits are multiplied as
bytes (`cabm.engine.narrow`).
"""

from __future__ import annotations

import torch
from numba.extending import intrinsic, overload
from torch import Tensor

from cabm.engine import narrow, narrow_ir, winograd_ir
from cabm.engine.emitter import typed_call
from cabm.engine.finishing import finish
from cabm.engine.layer_numbers import NARROW_POSITIVE, WIDE
from cabm.engine.narrow_ir import SHIFT
from cabm.engine.winograd_ir import CHUNK, POSITIONS, REGISTERS, STRIP

UNIT = 4
"""The sums are this many times the convolution."""


def scratch_bytes(lanes: int) -> tuple[int, int]:
    """Return the bytes of a layer's working memory: per channel, and besides."""
    sums = 4 * REGISTERS * lanes * STRIP
    return 2 * POSITIONS * STRIP, (POSITIONS + 4) * sums + 64


def pack(codes: Tensor, group: int, products: int) -> Tensor:
    """Return packed weights for whole numbers (O,I,3,3) in -127..127.

    They are int16 (O / group, 16, I / 2, group, 2) if ``products`` is WIDE; else see
    `cabm.engine.narrow.pack`.
    """
    outputs, inputs = codes.shape[:2]
    matrix = torch.tensor([[2.0, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])
    transformed = (matrix @ codes.float() @ matrix.T).view(outputs, inputs, POSITIONS)
    if products != WIDE:
        return narrow.pack(transformed, group, products)
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


def _transform_strip(lanes, products, count, source, row, channels, transformed):
    """Transform the inputs of ``count`` adjacent tiles."""
    raise NotImplementedError("only compiled loops call this")


@overload(_transform_strip, prefer_literal=True)
def _typed_transform_strip(lanes, products, count, source, row, channels, transformed):
    def loop(lanes, products, count, source, row, channels, transformed):
        shift = 0 if products == NARROW_POSITIVE else SHIFT
        for i in range(count):
            here = source + 2 * i * channels
            if products == WIDE:
                _transform_input(lanes, here, row, channels, transformed + 2 * CHUNK * i)
            else:
                there = transformed + CHUNK * i
                narrow.transform_input(lanes, here, row, channels, shift, there)

    return loop


def _multiply_strip(lanes, products, count, transformed, channels, weights, sums):
    """Multiply ``count`` adjacent tiles at all positions with the weights of a group of output channels."""
    raise NotImplementedError("only compiled loops call this")


@overload(_multiply_strip, prefer_literal=True)
def _typed_multiply_strip(lanes, products, count, transformed, channels, weights, sums):
    group = REGISTERS * lanes.literal_value
    wide, few = winograd_ir.TILES[lanes.literal_value], narrow_ir.TILES[lanes.literal_value]

    def loop(lanes, products, count, transformed, channels, weights, sums):
        for p in range(POSITIONS):
            there = sums + 4 * group * p * STRIP
            if products == WIDE:
                source = transformed + 2 * STRIP * channels * p
                kernel = weights + 2 * channels * group * p
                for i in range(0, count, wide):
                    tiles, here = min(wide, count - i), source + 2 * CHUNK * i
                    _multiply(lanes, tiles, here, channels // 2, kernel, there + 4 * group * i)
            else:
                source = transformed + STRIP * channels * p
                kernel = weights + ((4 + channels) * group * p)
                for i in range(0, count, few):
                    tiles, here = min(few, count - i), source + CHUNK * i
                    narrow.multiply(lanes, tiles, here, channels // CHUNK, kernel, there + 4 * group * i)

    return loop


def run_layer(lanes, layer, image, ends, scratch):
    """Convolve all pixels of a framed byte image; see `cabm.engine.steps`."""
    raise NotImplementedError("only compiled loops call this")


@overload(run_layer, prefer_literal=True)
def _run_layer(lanes, layer, image, ends, scratch):
    group = REGISTERS * lanes.literal_value

    def loop(lanes, layer, image, ends, scratch):
        weights, starts, inputs, outputs, multiply = layer
        source, row, height, width = image
        weight = 2 * inputs if multiply == WIDE else 4 + inputs  # bytes per output channel and position
        products = scratch + 2 * POSITIONS * STRIP * inputs
        sums = products + POSITIONS * STRIP * group * 4
        tiles = -(-width // 2)
        for y in range(0, height, 2):
            tile = 0
            for left in range(-(-tiles // STRIP), 0, -1):
                count = -(-(tiles - tile) // left)  # as even as possible
                here = source + y * row + 2 * tile * inputs
                _transform_strip(lanes, multiply, count, here, row, inputs, scratch)
                for first in range(0, outputs, group):
                    kernel = weights + weight * POSITIONS * first
                    _multiply_strip(lanes, multiply, count, scratch, inputs, kernel, products)
                    for i in range(count):
                        there = sums + 8 * group * i
                        _transform_output(lanes, products + 4 * group * i, starts + 4 * first, there)
                    pixels = min(2 * count, width - 2 * tile)
                    for line in range(min(2, height - y)):
                        there = sums + 8 * STRIP * group * line
                        finish(lanes, REGISTERS, pixels, there, 4 * group, first, y + line, 2 * tile, ends)
                tile += count

    return loop
