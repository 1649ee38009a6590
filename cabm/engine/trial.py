"""A compiled call is tried once, on extreme sums, before it is used."""

from __future__ import annotations

import numpy as np

from cabm.engine.blocks import Block, residual_chain
from cabm.engine.fused import Kernel
from cabm.engine.grid import Grid, Storage
from cabm.engine.packing import BoundConv, Scaling
from cabm.engine.reference import convolve


def tried(kernel: Kernel) -> bool:
    """Run a residual block on extreme sums. Factors are powers of two, so all results are exact."""
    height, width, channels = 3, 7, 2 * kernel.form.granule
    random = np.random.default_rng(0)
    codes = random.integers(-127, 128, (2, channels, channels, 3, 3))
    codes[:, 0], codes[:, 1] = 127, -127
    x = random.integers(-127, 128, (height, width, channels)).astype(np.float32)
    x[:, :3] = 127
    factor, bias = 2.0**-14, 2.0**-3
    source, residual = (Grid(127.0, 8, storage) for storage in (Storage.SHIFTED, Storage.SIGNED))
    grids = source, Grid(255.0, 8, Storage.POSITIVE, unsigned=True)
    scaling = Scaling(np.full(1, factor, np.float32), np.full(1, bias, np.float32))
    convs = [
        BoundConv(kernel.pack(each, shifted=grid.zero != 0), grid, scaling)
        for each, grid in zip(codes, grids, strict=True)
    ]
    found = residual_chain(kernel, [Block(*convs, skip=source, residual=residual)]).run(x)
    hidden = np.rint(convolve(x, codes[0]) * factor + bias).clip(0, 255)
    wanted = np.rint(convolve(hidden, codes[1]) * factor + bias).clip(-127, 127)
    return bool(np.array_equal(found, wanted + x))
