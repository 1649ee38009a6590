"""Small images, and files and stores of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cabm.data.store import PackedStore, pack
from cabm.files import read_json, sha256_file
from cabm.imaging.images import write_image
from cabm.imaging.resize import downscale


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_pairs(*low_sizes: tuple[int, int], scale: int = 2) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return pairs of noise, named a, b, ..., with these low-resolution heights and widths."""
    pairs = []
    for index, (height, width) in enumerate(low_sizes):
        high = noise(height * scale, width * scale, index)
        pairs.append((chr(ord("a") + index), high, downscale(high, scale)))
    return pairs


def make_store(directory: Path, *low_sizes: tuple[int, int], scale: int = 2) -> PackedStore:
    return pack(make_pairs(*low_sizes, scale=scale), directory, scale)


def save_image(path: Path, height: int = 17, width: int = 26, seed: int = 0) -> np.ndarray:
    """Write noise; by default, no scale divides its size."""
    image = noise(height, width, seed)
    write_image(path, image)
    return image


def assert_pixels_as_packed(directory: Path) -> None:
    """Compare the pixel files of a store with the hashes in its index."""
    index = read_json(directory / "index.json")
    for side in ("hr", "lr"):
        assert sha256_file(directory / f"{side}.bin") == index[side]["sha256"]
