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
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine.float_rows import Layer, Rows
from cabm.machine.compiled import Loop, compiles_for_this_cpu, jit, none_if_numba_fails
from cabm.machine.cpu import compiler_features
from cabm.models.tail import pixels_together

CHANNELS = 16
"""Convolutions but the last make a multiple of this many channels."""


class ByteRows(Rows):
    """Convolutions one after another, on bytes, with results in float32.

    Args:
        loop, lanes: from `compiled`.
        layers: as of `Rows`.
    """

    def __init__(self, loop: Loop, lanes: int, layers: Sequence[Layer]) -> None:
        self._lanes = lanes
        super().__init__(loop, layers)

    def _row(self, layer: Layer, last: bool) -> list[int]:
        from cabm.engine import winograd, winograd_ir

        weight, bias = (
            pixels_together(each.detach(), layer.shuffle).float() for each in (layer.weight, layer.bias)
        )
        planar = last and len(weight) == 3
        margin = 0 if planar else -len(weight) % CHANNELS
        weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, margin))
        upper, lower, scales = in_bytes(weight)
        band = 1 if last else self._band(layer, len(weight))
        if band > 1:
            whole = winograd.pack(upper, winograd_ir.REGISTERS * self._lanes), upper.sum(dim=(1, 2, 3))
        else:
            again = [upper] * layer.input_bytes + [lower] * (layer.weight_bytes - 1)
            codes = torch.cat(again, dim=2)  # (O,I,taps,k)
            groups = [codes] if planar else _groups(codes, self._lanes, 1 if last else layer.shuffle)
            sums = [group.sum(dim=(1, 3)).T.flatten() for group in groups]
            whole = torch.cat([pack(group).flatten() for group in groups]), torch.cat(sums)
        packed = [
            whole[0],
            whole[1].to(torch.int32),
            scales.contiguous(),
            F.pad(bias, (0, margin)).contiguous(),
        ]
        slope = torch.tensor([layer.slope], dtype=torch.float32)
        self._kept += [*packed, slope]
        outputs, inputs, size, _ = weight.shape
        addresses = [tensor.data_ptr() for tensor in packed]
        shape = [size, inputs, outputs, layer.shuffle, int(layer.replicate), slope.data_ptr()]
        return [*shape, band, *addresses, layer.input_bytes, layer.weight_bytes, int(planar)]

    @staticmethod
    def _band(layer: Layer, outputs: int) -> int:
        """Return how many rows a convolution computes at once: several by Winograd, where that fits."""
        from cabm.engine import winograd, winograd_ir

        inputs, size = layer.weight.shape[1:3]
        one_byte = layer.input_bytes == layer.weight_bytes == 1
        whole = inputs % winograd_ir.CHUNK == outputs // layer.shuffle % winograd_ir.CHUNK == 0
        fits = size == 3 and not layer.replicate and one_byte and whole and inputs <= winograd.PART
        return winograd_ir.PIXELS if fits else 1


def in_bytes(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return whole numbers -127..127 for the upper and the lower parts of weights, and scales (O,).

    A weight is about scale * (upper + lower / 254).
    """
    from cabm.engine.byte_rows_codes import LOWER_WEIGHT

    scales = weight.abs().amax(dim=(1, 2, 3)) / 127
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    codes = weight / scales.view(-1, 1, 1, 1)
    upper = codes.round()
    return upper, ((codes - upper) * LOWER_WEIGHT).round(), scales


def _groups(codes: Tensor, lanes: int, split: int) -> list[Tensor]:
    """Split output channels into those computed together: of one row after PixelShuffle."""
    from cabm.engine.byte_rows_ir import REGISTERS

    return [group for part in codes.chunk(split) for group in part.split(REGISTERS * lanes)]


def pack(codes: Tensor) -> Tensor:
    """Return int8 weights (taps, k, I / 4, O, 4) for whole numbers (O,I,taps,k)."""
    quads = codes.unflatten(1, (-1, 4))
    return quads.permute(3, 4, 1, 0, 2).to(torch.int8)


def rows(layers: Sequence[Layer]) -> ByteRows | None:
    """Return convolutions on bytes; None where this CPU or their shapes rule that out."""
    whole = all(len(layer.weight) // layer.shuffle**2 % CHANNELS == 0 for layer in layers[:-1])
    fits = whole and all(layer.weight.shape[1] % CHANNELS == 0 for layer in layers)
    found = compiled() if fits else None
    return None if found is None else ByteRows(*found, layers)


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

    random = np.random.default_rng(0)  # PyTorch's generators need modules that a start does without
    x, *weights = (
        torch.from_numpy(random.integers(-3, 4, size)).float()
        for size in ((1, 16, 5, 9), (64, 16, 3, 3), (3, 16, 3, 3))
    )
    exact: dict[str, Any] = {"input_bytes": 2, "weight_bytes": 2}
    first = Layer(weights[0] / 64, torch.full((64,), 0.5), shuffle=2, slope=0.5, **exact)
    last = Layer(weights[1], torch.zeros(3), **exact)
    pixels = random.integers(0, byte_winograd.MOST + 1, (1, 32, 5, 9))
    kernels = random.integers(-127, 128, (128, 32, 3, 3))
    pixels[:, 0], kernels[:, 0] = byte_winograd.MOST, 127  # so that all scales are powers of two
    bands = replace(first, weight=torch.from_numpy(kernels) / 2.0**20, input_bytes=1, weight_bytes=1)
    bands = replace(bands, bias=torch.full((128,), 0.5))
    after = Layer(weights[1].repeat(1, 2, 1, 1), torch.zeros(3), **exact)
    for image, layers in ((x, [first, last]), (torch.from_numpy(pixels).float(), [bands, after])):
        hidden = F.conv2d(image, layers[0].weight, layers[0].bias, padding=1)
        hidden = F.leaky_relu(F.pixel_shuffle(hidden, 2), 0.5)
        wanted = F.conv2d(hidden, layers[1].weight, padding=1)
        if not bool((ByteRows(loop, lanes, layers)(image) - wanted).abs().max() <= 1e-2):
            return False
    return True
