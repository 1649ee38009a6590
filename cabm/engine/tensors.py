"""Tensors of PyTorch as arrays, and back; both share memory where the layout allows it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def as_array(x: Tensor) -> np.ndarray:
    """Return an image (1,C,h,w) as (h,w,C)."""
    return x[0].permute(1, 2, 0).numpy()


def through(run: Callable[..., np.ndarray], x: Tensor, **images: Tensor) -> Tensor:
    """Call a function of arrays (h,w,C) with images (1,C,h,w)."""
    found = run(as_array(x), **{name: as_array(image) for name, image in images.items()})
    return torch.from_numpy(found).permute(2, 0, 1)[None]
