"""A tiny model and small photographs for the tests of everything that upscales files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cabm.checkpoints.model_directory import save_model
from cabm.models import build_model
from cabm.quant import Precision
from cabm.tables.bypass import Bypass
from cabm.tables.table import EdgeToBitTable

TILE, STRIDE = 24, 22
# edge score, bits: from flat tiles to noise
ROWS = ((0.0, 4), (8.0, 6), (40.0, 8))


def tiny_model(
    directory: Path, kind: str = "cabm", *, scale: int = 2, bypass: float = 0.0, part: int = TILE
) -> Path:
    """Save an EDSR with 8 features and 2 blocks. Every call makes the same weights."""
    torch.manual_seed(0)
    model = build_model("edsr", scale, Precision(kind), {"num_features": 8, "num_blocks": 2})
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("alpha"):
                value.fill_(40.0)
    table = None
    if kind == "cabm":
        table = EdgeToBitTable(
            backbone="edsr",
            scale=scale,
            search_space=(4, 6, 8),
            layers=model.facts.layer_names,
            tile=TILE,
            stride=STRIDE,
            strategy="lowest",
            thresholds=[threshold for threshold, _ in ROWS],
            rows=[[width] * model.num_adaptive for _, width in ROWS],
            bypass=Bypass(part=part, threshold=bypass) if bypass else None,
        )
    save_model(directory, model, table=table, provenance={"stage": "test", "epochs": 0})
    return directory


def photo(height: int, width: int, channels: int = 3, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """Return (height, width, channels): smooth on the left, noisy on the right; alpha with a hole."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(y / (5 + c) + c) + np.cos(x / (7 + c)) for c in range(channels)]
    noise = random.normal(size=(height, width, channels)) * (x / max(width, 1) * 0.7)[..., None]
    values = np.clip(0.5 + 0.2 * np.stack(waves, axis=2) + 0.3 * noise, 0, 1)
    if channels in (2, 4):
        far = np.hypot(y - height / 2, x - width / 2) > min(height, width) / 3
        values[..., -1] = np.where(far, 1, 0)
    return np.round(values * np.iinfo(dtype).max).astype(dtype)
