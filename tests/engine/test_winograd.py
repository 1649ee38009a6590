"""Integer Winograd where its transforms are as large as they can be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine.blocks import Block, residual_chain
from cabm.engine.fused import Kernel
from cabm.engine.grid import Grid, Storage
from cabm.engine.packing import BoundConv
from cabm.engine.winograd import KERNEL, PART

from .helpers import compiled, scaling, through

INPUT = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0))
INPUT += ((0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))
"""The matrix B^T of F(4x4,3x3)."""


@pytest.fixture(params=["winograd 512", "winograd 256"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return compiled(request.param)


def signs(matrix: tuple[tuple[int, ...], ...], row: int, column: int) -> Tensor:
    """Return the signs of a product of two rows, 1 instead of 0."""
    rows = torch.tensor(matrix).sign()
    product = rows[row][:, None] * rows[column]
    return torch.where(product == 0, 1, product)


def run(kernel: Kernel, convs: list[Tensor], codes: Tensor, exponents: tuple[int, int]) -> Tensor:
    """Run a residual block on codes whose steps are 1, and check it against double precision."""
    grids = Grid(127.0, 8, Storage.SHIFTED), Grid(255.0, 8, Storage.POSITIVE, unsigned=True)
    bound = [
        BoundConv(
            kernel.pack(conv.numpy(), shifted=grid.zero != 0),
            grid,
            scaling(2.0**-exponent),
        )
        for conv, grid, exponent in zip(convs, grids, exponents, strict=True)
    ]
    block = Block(*bound, skip=grids[0], residual=Grid(127.0, 8, Storage.SIGNED))
    found = through(residual_chain(kernel, [block]).run, codes.float()).double()
    hidden = F.conv2d(codes.double(), convs[0].double(), padding=1) / 2 ** exponents[0]
    residual = F.conv2d(hidden.round().clamp(0, 255), convs[1].double(), padding=1) / 2 ** exponents[1]
    assert torch.equal(found, residual.round().clamp(-127, 127) + codes)
    return residual


@pytest.mark.parametrize("column", range(6))
@pytest.mark.parametrize("row", range(6))
def test_the_largest_transforms_are_exact(kernel: Kernel, row: int, column: int) -> None:
    """At one position all inputs and weights have the signs that make it largest, in all channels."""
    channels = PART + 32  # two parts
    codes = 127 * signs(INPUT, row, column).tile(1, channels, 2, 2)
    weights = (127 * signs(KERNEL, row, column)).expand(channels, channels, 3, 3)
    largest = torch.zeros(channels, channels, 3, 3, dtype=torch.int64)
    largest[range(channels), range(channels), 1, 1] = 127
    run(kernel, [weights, largest], codes, (16, 8))
    hidden_at_both_ends = run(kernel, [largest, weights], codes, (5, 20))
    assert hidden_at_both_ends.abs().max() > 4


@pytest.mark.parametrize("channels", [32, PART, 2 * PART + 32])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 7), (5, 24), (4, 53), (7, 97)])
def test_random_codes_are_exact(kernel: Kernel, channels: int, height: int, width: int) -> None:
    """Images that end within a tile, and parts of channels."""
    generator = torch.Generator().manual_seed(height)
    convs = torch.randint(-127, 128, (2, channels, channels, 3, 3), generator=generator)
    codes = torch.randint(-127, 128, (1, channels, height, width), generator=generator)
    run(kernel, list(convs), codes, (11, 13))
