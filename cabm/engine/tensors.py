"""Images as tensors of PyTorch, and back, on the same memory where the layout allows it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def as_tensor(x: np.ndarray) -> Tensor:
    """Return an image (h,w,C) as a tensor (1,C,h,w)."""
    return torch.from_numpy(x).permute(2, 0, 1)[None]


def as_array(x: Tensor) -> np.ndarray:
    """Return a tensor (1,C,h,w) as an image (h,w,C), contiguous."""
    return x[0].permute(1, 2, 0).contiguous().numpy()
