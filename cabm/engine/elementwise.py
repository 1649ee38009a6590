"""The operations between convolutions: encode, add and encode, add and decode.

Each is one pass over memory, compiled by numba (`cabm.engine.elementwise_loops`). Where numba fails,
PyTorch runs the same float32 operations one after another, with the same results.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
from torch import Tensor

from cabm.engine import elementwise_loops
from cabm.engine.grid import Grid, Storage
from cabm.machine.compiled import Loop, jit, none_if_numba_fails


@dataclass(frozen=True)
class Compiled:
    """The loops of `cabm.engine.elementwise_loops`, compiled."""

    encode: Loop
    add_encode: Loop
    add_decode: Loop


@cache
@none_if_numba_fails
def compiled() -> Compiled | None:
    """Return the compiled loops, or None if numba fails; the first call compiles."""
    loops = Compiled(*(jit(getattr(elementwise_loops, field.name)) for field in fields(Compiled)))
    if not _tried(loops):
        raise ArithmeticError("compiled loops compute wrong codes")
    return loops


def _tried(loops: Compiled) -> bool:
    """Run one loop now, so that a failure does not surface in the threads that run tiles."""
    grid = Grid(2.0, 2, Storage.SHIFTED)
    out = np.zeros(3, np.uint8)
    loops.encode(np.array([0.6, 5, -5], np.float32), np.float32(1), *_rounding(grid), out)
    return out.tolist() == [128, 129, 127]


def encode(x: Tensor, grid: Grid, *, slope: float = 1.0) -> Tensor:
    """Return the codes of float32 values (N,C,H,W); negative values are first multiplied by ``slope``."""
    loops = compiled()
    if loops is None:
        values = x if slope == 1 else torch.where(x < 0, x * np.float32(slope), x)
        return _codes(values * grid.inverse, grid)
    x = dense(x)
    out = torch.empty_like(x, dtype=byte_type(grid))
    loops.encode(flat(x), np.float32(slope), *_rounding(grid), flat(out))
    return out


def add_encode(a: Tensor, a_scale: np.float32, b: Tensor, b_grid: Grid, out_grid: Grid) -> Tensor:
    """Return the codes of a * a_scale + value of b.

    Args:
        a: (N,C,H,W) int8 codes, or float32 with scale 1.
        a_scale: the step of ``a``.
        b: (N,C,H,W) uint8 codes of ``b_grid``.
        b_grid, out_grid: of ``b`` and of the result.
    """
    loops = compiled()
    if loops is None:
        return _codes(add_decode(a, a_scale, b, b_grid).mul_(out_grid.inverse), out_grid)
    a, b = dense(a), dense(b)
    out = torch.empty_like(b, dtype=byte_type(out_grid))
    zero = np.int32(b_grid.zero)
    loops.add_encode(flat(a), a_scale, flat(b), b_grid.scale, zero, *_rounding(out_grid), flat(out))
    return out


def add_decode(a: Tensor, a_scale: np.float32, b: Tensor, b_grid: Grid) -> Tensor:
    """Return a * a_scale + value of b (N,C,H,W) as float32; arguments as in `add_encode`."""
    loops = compiled()
    if loops is None:
        return (a.float() * a_scale).add_((b.float() - b_grid.zero).mul_(b_grid.scale))
    a, b = dense(a), dense(b)
    out = torch.empty_like(b, dtype=torch.float32)
    loops.add_decode(flat(a), a_scale, flat(b), b_grid.scale, np.int32(b_grid.zero), flat(out))
    return out


def byte_type(grid: Grid) -> torch.dtype:
    """Return PyTorch's type of a grid's bytes."""
    return torch.int8 if grid.dtype == np.int8 else torch.uint8


def dense(x: Tensor) -> Tensor:
    """Return ``x`` (N,C,H,W) in channels-last layout, as all byte tensors are."""
    return x.contiguous(memory_format=torch.channels_last)


def flat(x: Tensor) -> np.ndarray:
    """Return the memory of a dense tensor (N,C,H,W) as a flat array that shares it."""
    return x.permute(0, 2, 3, 1).view(-1).numpy()


def _rounding(grid: Grid) -> tuple[np.float32, np.float32, np.float32, np.int32]:
    return grid.inverse, np.float32(grid.low), np.float32(grid.levels), np.int32(grid.zero)


def _codes(scaled: Tensor, grid: Grid) -> Tensor:
    """Round and clip values given in units of the step; overwrites them."""
    return dense(scaled.round_().clamp_(grid.low, grid.levels).add_(grid.zero).to(byte_type(grid)))
