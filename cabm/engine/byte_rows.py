"""Float convolutions one after another, row by row, by products of bytes, for processors with VNNI.

Each row of an input is rounded to 8 bits, with a scale and a zero of its own, and the weights of each
output channel to 8 bits with one scale. Where that is too coarse, a number is the sum of two such bytes,
which makes 16 bits. Sums are exact for a row of the kernel, and in float32 from there on.

Most 3x3 convolutions compute four rows at once, whose inputs have a common scale; see
`cabm.engine.byte_winograd`.

`cabm.engine.row_order` explains the order of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from cabm.engine.arrays import groups_of, with_margin
from cabm.engine.float_rows import Layer, PackedRows, Rows, pixels_together, result_shape
from cabm.engine.reference import convolve, leaky, pixel_shuffle
from cabm.machine.compiled import Loop, compiles_for_this_cpu, jit, none_if_numba_fails
from cabm.machine.cpu import compiler_features

CHANNELS = 16
"""Convolutions but the last make a multiple of this many channels."""


def pack_rows(layers: Sequence[Layer], lanes: int) -> PackedRows:
    """Pack convolutions for products of bytes.

    Args:
        layers: as of `cabm.engine.float_rows.pack_rows`; all read a multiple of 16 channels.
        lanes: of the registers, from `compiled`.
    """
    table, arrays = [], []
    for layer in layers:
        row, packed = _pack_layer(layer, lanes, layer is layers[-1])
        table.append(row)
        arrays += [np.array([layer.slope], np.float32), *packed]
    return PackedRows(lanes, *result_shape(layers), np.array(table, np.int64), arrays)


def _pack_layer(layer: Layer, lanes: int, last: bool) -> tuple[list[int], list[np.ndarray]]:
    """Return a row of the loop's table, and arrays; see `cabm.engine.float_rows.PackedRows`."""
    from cabm.engine import winograd, winograd_ir

    weight, bias = (pixels_together(each, layer.shuffle) for each in (layer.weight, layer.bias))
    planar = last and len(weight) == 3
    margin = 0 if planar else -len(weight) % CHANNELS
    weight = with_margin(weight, margin)
    upper, lower, scales = in_bytes(weight)
    band = 1 if last else _band(layer, len(weight))
    if band > 1:
        packed = winograd.pack(upper, winograd_ir.REGISTERS * lanes)
        sums = upper.sum(axis=(1, 2, 3), dtype=np.int32)
    else:
        again = [upper] * layer.input_bytes + [lower] * (layer.weight_bytes - 1)
        codes = np.concatenate(again, axis=2)  # (O,I,taps,k)
        groups = [codes] if planar else _groups(codes, lanes, 1 if last else layer.shuffle)
        packed = np.concatenate([pack(group).reshape(-1) for group in groups])
        sums = np.concatenate([group.sum(axis=(1, 3), dtype=np.int32).T.reshape(-1) for group in groups])
    outputs, inputs, size, _ = weight.shape
    row = [size, inputs, outputs, layer.shuffle, int(layer.replicate), 0, band, 0, 0, 0, 0]
    row += [layer.input_bytes, layer.weight_bytes, int(planar)]
    return row, [packed, sums, scales, with_margin(bias, margin)]


def _band(layer: Layer, outputs: int) -> int:
    """Return how many rows a convolution computes at once: several by Winograd, where that fits."""
    from cabm.engine import winograd, winograd_ir

    inputs, size = layer.weight.shape[1:3]
    one_byte = layer.input_bytes == layer.weight_bytes == 1
    whole = inputs % winograd_ir.CHUNK == outputs // layer.shuffle % winograd_ir.CHUNK == 0
    fits = size == 3 and not layer.replicate and one_byte and whole and inputs <= winograd.PART
    return winograd_ir.PIXELS if fits else 1


def in_bytes(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return int8 codes -127..127 for the upper and the lower parts of weights, and scales (O,) float32.

    A weight is about scale * (upper + lower / 254).
    """
    from cabm.engine.byte_rows_codes import LOWER_WEIGHT

    scales = np.abs(weight).max(axis=(1, 2, 3)) / np.float32(127)
    scales = np.where(scales > 0, scales, np.float32(1))
    codes = weight / scales[:, None, None, None]
    upper = np.rint(codes)
    lower = np.rint((codes - upper) * np.float32(LOWER_WEIGHT))
    return upper.astype(np.int8), lower.astype(np.int8), scales


def _groups(codes: np.ndarray, lanes: int, split: int) -> list[np.ndarray]:
    """Split output channels into those computed together: of one row after PixelShuffle."""
    from cabm.engine.byte_rows_ir import REGISTERS

    return [group for part in np.split(codes, split) for group in groups_of(part, REGISTERS * lanes)]


def pack(codes: np.ndarray) -> np.ndarray:
    """Return int8 weights (taps, k, I / 4, O, 4) for codes (O,I,taps,k)."""
    outputs, inputs, taps, size = codes.shape
    return codes.reshape(outputs, inputs // 4, 4, taps, size).transpose(3, 4, 1, 0, 2)


def rows(layers: Sequence[Layer]) -> Rows | None:
    """Return convolutions on bytes; None where this CPU or their shapes rule that out."""
    whole = all(len(layer.weight) // layer.shuffle**2 % CHANNELS == 0 for layer in layers[:-1])
    fits = whole and all(layer.weight.shape[1] % CHANNELS == 0 for layer in layers)
    found = compiled() if fits else None
    if found is None:
        return None
    loop, lanes = found
    return Rows(loop, pack_rows(layers, lanes))


@cache
@none_if_numba_fails
def compiled() -> tuple[Loop, int] | None:
    """Return the compiled loop and its lanes, or None where the CPU has no VNNI; the first call compiles.

    Raises:
        ArithmeticError: it computes wrong results.
    """
    features = compiler_features()
    wide = all(features.get(each) for each in ("avx512vnni", "avx512bw", "avx512dq"))
    if not compiles_for_this_cpu() or not (wide or features.get("avxvnni")):
        return None
    return compile_loop(16 if wide else 8)


def compile_loop(lanes: int) -> tuple[Loop, int]:
    """Compile the loop for registers of ``lanes`` 32-bit numbers and try it.

    Raises:
        ArithmeticError: it computes wrong results.
    """
    from cabm.engine.byte_rows_loops import rows_loop

    loop = jit(rows_loop(lanes))
    if not _tried(loop, lanes):
        raise ArithmeticError("compiled convolutions of bytes compute wrong results")
    return loop, lanes


def _tried(loop: Loop, lanes: int) -> bool:
    """Run convolutions on whole numbers, with an error of 16 bits at most."""
    from cabm.engine import byte_winograd

    random = np.random.default_rng(0)
    x, *weights = (
        random.integers(-3, 4, size).astype(np.float32)
        for size in ((5, 9, 16), (64, 16, 3, 3), (3, 16, 3, 3))
    )
    exact: dict[str, Any] = {"input_bytes": 2, "weight_bytes": 2}
    pixels = random.integers(0, byte_winograd.MOST + 1, (5, 9, 32)).astype(np.float32)
    kernels = random.integers(-127, 128, (128, 32, 3, 3)).astype(np.float32)
    pixels[:, :, 0], kernels[:, 0] = byte_winograd.MOST, 127  # so that all scales are powers of two
    for image, first, last, parts in (
        (x, weights[0] / np.float32(64), weights[1], exact),
        (pixels, kernels / np.float32(2**20), np.tile(weights[1], (1, 2, 1, 1)), {}),
    ):
        layers = [
            Layer(first, np.full(len(first), 0.5, np.float32), shuffle=2, slope=0.5, **parts),
            Layer(last, np.zeros(3, np.float32), **exact),
        ]
        hidden = leaky(pixel_shuffle(convolve(image, first) + 0.5, 2), 0.5)
        found = Rows(loop, pack_rows(layers, lanes))(image)
        if not bool(np.abs(found - convolve(hidden, last)).max() <= 1e-2):
            return False
    return True
