"""The Winograd form, F(4x4,3x3) in exact integers, for processors that multiply numbers of 16 bits well.

A tile of 4x4 outputs takes 36 products per pair of channels where the direct sum takes 144 (Lavin and Gray,
2016). Whole numbers are enough for it:

- Transformed inputs are in -17340..17340. A row of B^T has at most 5 of each sign, or 2 and 8; so a product
  of two rows has at most 68 of one sign, times 255.
- Kernels are transformed by `KERNEL`, the rows of G times 4, 6, 6, 24, 24 and 1: at most 49 * 127.
- Both fit 16 bits. All else is computed modulo 2^32, so sums may overflow on the way. `winograd_ir` gathers
  24^2 = 9 * 64 times the convolution. 9 has an inverse modulo 2^32; and 64 times the convolution of up to
  `PART` channels fits 32 bits with its sign, so a shift divides by 64.

Tiles are computed in strips of `STRIP`, which a core's caches hold.
"""

from __future__ import annotations

import numpy as np
from numba.extending import intrinsic, overload

from cabm.engine import winograd_ir
from cabm.engine.emitter import typed_call
from cabm.engine.finishing import finish
from cabm.engine.winograd_ir import CHUNK, PIXELS, POSITIONS, REGISTERS, STRIP

KERNEL = ((1, 0, 0), (-1, -1, -1), (-1, 1, -1), (1, 2, 4), (1, -2, 4), (0, 0, 1))

PART = 96
"""Input channels whose sums are gathered together: 64 * 9 * 96 * 255 * 127 is below 2^31."""


def scratch_bytes(lanes: int) -> tuple[int, int]:
    """Return the bytes of a layer's working memory: per channel, and besides."""
    sums = 4 * REGISTERS * lanes * STRIP
    return 2 * POSITIONS * STRIP, (POSITIONS + PIXELS**2) * sums + 64


def pack(codes: np.ndarray, group: int) -> np.ndarray:
    """Return int16 weights (O / group, 36, I / 2, group, 2) for whole numbers (O,I,3,3) in -127..127."""
    outputs, inputs = codes.shape[:2]
    matrix = np.array(KERNEL, np.float32)
    lines = codes.astype(np.float32).reshape(-1, 3) @ matrix.T
    columns = lines.reshape(-1, 3, len(matrix)).transpose(1, 0, 2).reshape(3, -1)
    transformed = (matrix @ columns).reshape(len(matrix), outputs // group, group, inputs // 2, 2, -1)
    halves = transformed.astype(np.int16).transpose(1, 0, 5, 3, 2, 4)
    return halves.reshape(outputs // group, POSITIONS, inputs // 2, group, 2)


@intrinsic(prefer_literal=True)
def transform_input(_, lanes, source, row, channels, transformed):
    """Transform the input of one tile; see `cabm.engine.winograd_ir.Input`."""
    return typed_call(lanes, winograd_ir.Input, {"row", "channels"}, winograd_ir.emit_input)


@intrinsic(prefer_literal=True)
def transform_halves(_, lanes, source, row, channels, transformed):
    """Transform the input of one tile of 16-bit numbers; see `cabm.engine.winograd_ir.Input`."""
    return typed_call(lanes, winograd_ir.Input, {"row", "channels"}, winograd_ir.emit_input_of_halves)


@intrinsic(prefer_literal=True)
def _multiply(_, lanes, count, transformed, pairs, weights, products):
    """Multiply adjacent tiles at one position; see `cabm.engine.winograd_ir.Product`."""
    return typed_call(lanes, winograd_ir.Product, {"count", "pairs"}, winograd_ir.emit_product)


@intrinsic(prefer_literal=True)
def transform_output(_, lanes, products, starts, each, sums):
    """Transform the products of one tile to sums; see `cabm.engine.winograd_ir.Output`."""
    return typed_call(lanes, winograd_ir.Output, {"each"}, winograd_ir.emit_output)


def multiply_strip(lanes, count, transformed, channels, part, weights, products):
    """Multiply adjacent tiles at all positions with the weights of a group of output channels.

    Args:
        lanes: 32-bit numbers per register.
        count: number of tiles.
        transformed: see `cabm.engine.winograd_ir.Input`; at the first channel of the part.
        channels: of the convolution.
        part: channels of the part.
        weights: of the group, from the first channel of the part on.
        products: see `cabm.engine.winograd_ir.Output`.
    """
    raise NotImplementedError("only compiled loops call this")


@overload(multiply_strip, prefer_literal=True)
def _typed_multiply_strip(lanes, count, transformed, channels, part, weights, products):
    group = REGISTERS * lanes.literal_value
    most = winograd_ir.TILES[lanes.literal_value]

    def loop(lanes, count, transformed, channels, part, weights, products):
        for p in range(POSITIONS):
            there = products + 4 * group * p * STRIP
            source = transformed + 2 * STRIP * channels * p
            kernel = weights + 2 * channels * group * p
            for i in range(0, count, most):
                tiles, here = min(most, count - i), source + 2 * CHUNK * i
                _multiply(lanes, tiles, here, part // 2, kernel, there + 4 * group * i)

    return loop


def run_layer(lanes, layer, image, ends, scratch):
    """Convolve all pixels of a framed byte image; see `cabm.engine.steps`."""
    raise NotImplementedError("only compiled loops call this")


@overload(run_layer, prefer_literal=True)
def _run_layer(lanes, layer, image, ends, scratch):
    group = REGISTERS * lanes.literal_value

    def loop(lanes, layer, image, ends, scratch):
        weights, starts, inputs, outputs = layer
        source, row, height, width = image
        products = scratch + 2 * POSITIONS * STRIP * inputs
        sums = products + POSITIONS * STRIP * group * 4
        tiles = -(-width // PIXELS)
        for y in range(0, height, PIXELS):
            tile = 0
            for left in range(-(-tiles // STRIP), 0, -1):
                count = -(-(tiles - tile) // left)  # as even as possible
                x = PIXELS * tile
                for i in range(count):
                    here = source + y * row + (x + PIXELS * i) * inputs
                    transform_input(lanes, here, row, inputs, scratch + 2 * CHUNK * i)
                for first in range(0, outputs, group):
                    for begin in range(0, inputs, PART):
                        part, here = min(PART, inputs - begin), scratch + 2 * STRIP * begin
                        kernel = weights + 2 * (inputs * POSITIONS * first + group * begin)
                        multiply_strip(lanes, count, here, inputs, part, kernel, products)
                        for i in range(count):
                            there, each = sums + 4 * PIXELS * group * i, min(begin, 1)
                            added = there if each else starts + 4 * first
                            transform_output(lanes, products + 4 * group * i, added, each, there)
                    pixels = min(PIXELS * count, width - x)
                    for line in range(min(PIXELS, height - y)):
                        there = sums + 4 * PIXELS * STRIP * group * line
                        finish(lanes, REGISTERS, pixels, there, 4 * group, first, y + line, x, ends)
                tile += count

    return loop
