"""The engine against the simulation on photographs: the images, and their quality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cabm import Upscaler
from cabm.engine import compiling, kept
from cabm.engine.ends import Ends
from cabm.evaluation.quality import psnr_y

from .helpers import BACKBONES, Engine, calibrated, needs_units, row, simulated

pytestmark = [needs_units, pytest.mark.slow]

SCALE = 4
NAMES = ["baby", "bird", "butterfly", "head", "woman"]
MOST_LEVELS, MOST_DB = 0.25, 0.01
"""Mean difference of pixels of 0..255, and difference of PSNR, between engine and simulation."""


def photograph_of(name: str, scale: int, shared_data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a photograph of Set5: low and high resolution."""
    folder = shared_data / "Set5"
    paths = folder / "LR_bicubic" / f"X{scale}" / f"{name}x{scale}.png", folder / "HR" / f"{name}.png"
    low, high = (np.array(Image.open(path).convert("RGB")) for path in paths)
    return low, high[: scale * len(low), : scale * low.shape[1]]


@pytest.fixture(params=NAMES)
def photo(request: pytest.FixtureRequest, shared_data: Path) -> tuple[np.ndarray, np.ndarray]:
    return photograph_of(request.param, SCALE, shared_data)


def check(found: np.ndarray, wanted: np.ndarray, high: np.ndarray, scale: int = SCALE) -> None:
    assert found.shape == wanted.shape == high.shape
    assert np.abs(found.astype(float) - wanted).mean() <= MOST_LEVELS
    assert abs(psnr_y(found, high, scale) - psnr_y(wanted, high, scale)) <= MOST_DB


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ends", ["fastest", "on bytes"])
@pytest.mark.parametrize(("model", "scale", "psnr"), [("edsr_x4", 4, 25), ("idn_x2", 2, 30)])
def test_the_shipped_models(
    model: str,
    scale: int,
    psnr: float,
    ends: str,
    name: str,
    shared_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if ends == "on bytes":
        monkeypatch.setattr(compiling, "fastest", lambda: Ends(torch.float32, in_bytes=True))
        monkeypatch.setattr(kept, "find", lambda key: None)
        monkeypatch.setattr(kept, "keep", lambda key, model: False)
    low, high = photograph_of(name, scale, shared_data)
    found, wanted = (Upscaler.load(model, engine=engine)(low) for engine in ("int8", "float"))
    check(found, wanted, high, scale)
    assert psnr_y(found, high, scale) > psnr, "the upscaled photograph, not only the same image twice"


@pytest.mark.parametrize("bits", [4, "mixed", 8])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone(backbone: str, bits: int | str, photo: tuple[np.ndarray, np.ndarray]) -> None:
    low, high = photo
    model = calibrated(backbone, scale=SCALE)
    tile = torch.from_numpy(low).permute(2, 0, 1)[None]
    widths = row(model, bits)
    wanted = simulated(model, tile, widths).round().clamp(0, 255).to(torch.uint8)
    # random weights do not give the image, on whose account a trained tail in bfloat16 rounds little
    found = Engine(model, float_dtype=torch.float32).run(tile, widths)
    check(*(image[0].permute(1, 2, 0).numpy() for image in (found, wanted)), high)
