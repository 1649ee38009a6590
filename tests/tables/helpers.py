"""A table with a bypass, and an image that is half smooth."""

from __future__ import annotations

import numpy as np

from cabm.tables.bypass import Bypass
from cabm.tables.table import EdgeToBitTable


def half_smooth(height: int, width: int) -> np.ndarray:
    """Flat on the left, noise on the right."""
    image = np.full((height, width, 3), 90, np.uint8)
    image[:, width // 2 :] = np.random.default_rng(0).integers(0, 256, (height, width - width // 2, 3))
    return image


def bypass_table() -> EdgeToBitTable:
    return EdgeToBitTable(
        backbone="edsr",
        scale=2,
        search_space=(4, 6, 8),
        layers=("a", "b"),
        tile=48,
        stride=42,
        strategy="lowest",
        thresholds=[0.0, 20.0],
        rows=[[4, 4], [6, 8]],
        bypass=Bypass(part=8, threshold=5.0, max_loss_db=0.01),
    )
