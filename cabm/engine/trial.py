"""A compiled call is tried once, on extreme sums, before it is used."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from cabm.engine.blocks import Block, residual_chain
from cabm.engine.fused import Kernel
from cabm.engine.grid import Grid, Storage
from cabm.engine.onednn import Scaling
from cabm.engine.packing import BoundConv


def tried(kernel: Kernel) -> bool:
    """Run a residual block on extreme sums. Factors are powers of two, so all results are exact."""
    height, width, channels = 3, 7, 2 * kernel.form.granule
    random = np.random.default_rng(0)
    codes = torch.from_numpy(random.integers(-127, 128, (2, channels, channels, 3, 3)))
    codes[:, 0], codes[:, 1] = 127, -127
    x = torch.from_numpy(random.integers(-127, 128, (1, channels, height, width))).float()
    x[..., :3] = 127
    factor, bias = 2.0**-14, 2.0**-3
    source, residual = (Grid(127.0, 8, storage) for storage in (Storage.SHIFTED, Storage.SIGNED))
    grids = source, Grid(255.0, 8, Storage.POSITIVE, unsigned=True)
    scaling = Scaling(torch.full((channels,), factor), torch.full((channels,), bias))
    convs = [
        BoundConv(kernel.pack(each, shifted=grid.zero != 0), grid, scaling)
        for each, grid in zip(codes, grids, strict=True)
    ]
    found = residual_chain(kernel, [Block(*convs, skip=source, residual=residual)]).run(x)
    hidden = (F.conv2d(x.double(), codes[0].double(), padding=1) * factor + bias).round().clamp(0, 255)
    wanted = (F.conv2d(hidden, codes[1].double(), padding=1) * factor + bias).round().clamp(-127, 127)
    return bool(torch.equal(found.double(), wanted + x.double()))
