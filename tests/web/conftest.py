"""A site with a tiny model, and photographs to upscale on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cabm.web.models import Models
from cabm.web.site import Limits, Site
from tests.upscaling.helpers import photo, tiny_model

pytest.importorskip("matplotlib")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny", bypass=60.0, part=8)


@pytest.fixture
def site(model: Path, tmp_path: Path) -> Site:
    return Site(Models([model]), Limits(threads=2), tmp_path / "site")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A JPEG of 130 x 101 pixels with EXIF."""
    return save_photo(tmp_path / "a photo.jpg", photo(101, 130))


def save_photo(path: Path, pixels: np.ndarray) -> Path:
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x010E] = "a description"
    image.save(path, exif=exif, quality=95)
    return path
