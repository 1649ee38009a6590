"""The matrix form: products of tiles of bytes, for processors with AMX.

Pixels are numbered row by row with the frame's columns, so that 32 of them follow each other in memory
however narrow the image is; the sums of the frame are thrown away.
"""

from __future__ import annotations

import numpy as np
import torch
from numba.extending import intrinsic, overload
from torch import Tensor
from torch.nn import functional as F

from cabm.engine import amx_ir
from cabm.engine.amx_ir import DEPTH, LANES, PIXELS
from cabm.engine.emitter import typed_call
from cabm.engine.finishing import finish

GROUP = 2 * LANES
SCRATCH = 4 * PIXELS * GROUP
"""Bytes of working memory of a layer."""


def pack(codes: Tensor) -> Tensor:
    """Return int8 weights (O / 16, 3, ceil(3 I / 64), 16, 16, 4) for whole numbers (O,I,3,3)."""
    outputs, inputs = codes.shape[:2]
    rows = codes.permute(0, 2, 3, 1).reshape(outputs, 3, 3 * inputs)
    rows = F.pad(rows, (0, -3 * inputs % DEPTH))
    tiles = rows.view(outputs // LANES, LANES, 3, -1, DEPTH // 4, 4)
    return tiles.permute(0, 2, 3, 4, 1, 5).to(torch.int8).contiguous()


@intrinsic(prefer_literal=True)
def configure(_, lanes, memory):
    """Set the shapes of the tile registers; see `cabm.engine.amx_ir.Configuration`."""
    return typed_call(lanes, amx_ir.Configuration, set(), amx_ir.emit_configuration)


@intrinsic(prefer_literal=True)
def release(_, lanes, memory):
    """Reset the tile registers."""
    return typed_call(lanes, amx_ir.Configuration, set(), amx_ir.emit_release)


@intrinsic(prefer_literal=True)
def _multiply(_, lanes, halves, source, row, pixel, depths, weights, starts, sums):
    """Convolve adjacent pixels to a group of output channels; see `cabm.engine.amx_ir.Product`."""
    return typed_call(lanes, amx_ir.Product, amx_ir.INTEGERS, amx_ir.emit_product)


def run_layer(lanes, layer, image, ends, scratch):
    """Convolve all pixels of a framed byte image; see `cabm.engine.steps`."""
    raise NotImplementedError("only compiled loops call this")


@overload(run_layer, prefer_literal=True)
def _run_layer(lanes, layer, image, ends, scratch):
    def loop(lanes, layer, image, ends, scratch):
        weights, starts, inputs, outputs, _ = layer
        source, row, height, width = image
        pitch = row // inputs
        depths = -(-3 * inputs // DEPTH)
        last = (height - 1) * pitch + width
        configure(lanes, scratch)
        for first in range(0, outputs, GROUP):
            halves = min(2, (outputs - first) // LANES)
            for begin in range(0, last, PIXELS):
                _multiply(
                    lanes,
                    halves,
                    source + begin * inputs,
                    row,
                    inputs,
                    depths,
                    weights + first * 3 * depths * DEPTH,
                    starts + 4 * first,
                    scratch,
                )
                end = min(begin + PIXELS, last)
                place = begin
                while place < end:
                    y, x = place // pitch, place % pitch
                    count = min(end - place, width - x)
                    if count > 0:
                        sums = scratch + 4 * GROUP * (place - begin)
                        finish(lanes, halves, count, sums, 4 * GROUP, first, y, x, ends)
                    place += min(end - place, pitch - x)
        release(lanes, scratch)

    return loop


def permitted() -> bool:
    """Ask the system to let this process use tile registers; return whether it does."""
    import ctypes
    import sys

    if sys.platform != "linux":
        return False
    # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) of x86-64
    return np.int64(ctypes.CDLL(None).syscall(158, 0x1023, 18)) == 0
