from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from cabm.evaluation.bicubic import upscale_bicubic_batch
from cabm.imaging import bicubic
from cabm.imaging.bicubic import surround, upscale_surrounded, write_upscaled
from cabm.imaging.resize import upscale_bicubic
from cabm.tiling.plan import plan, split
from cabm.upscaling.tiles import surrounded_tile


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (24, 31)])
def test_a_surrounded_image_equals_the_batch(size, scale):
    x = pixels(3, *size)
    ours = upscale_surrounded(surround(x), scale)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, batch(x, scale), rtol=0, atol=1e-3)


def test_a_surrounded_image_differs_from_the_exact_resize_by_its_two_roundings():
    # in a range without overshoots: between its two passes the exact resize also clips
    image = np.random.default_rng(0).integers(80, 176, (20, 30, 3), np.uint8)
    x = image.transpose(2, 0, 1).astype(np.float32)
    ours = np.rint(upscale_surrounded(surround(x), 4)).clip(0, 255).transpose(1, 2, 0)
    assert np.abs(ours - upscale_bicubic(image, 4)).max() <= 1.5


def test_surrounded_tiles_equal_cuts_of_the_upscaled_image():
    image = pixels(3, 40, 31)
    tile_plan = plan(40, 31, 16, 13)
    surrounded = surround(image)
    whole = upscale_surrounded(surrounded, 2)
    for number, (y0, x0, y1, x1) in enumerate(tile_plan.boxes.tolist()):
        tile = upscale_surrounded(surrounded_tile(surrounded, tile_plan, number), 2)
        np.testing.assert_array_equal(tile, whole[:, 2 * y0 : 2 * y1, 2 * x0 : 2 * x1])


def test_tiles_of_a_small_image_have_the_padded_size():
    image = pixels(3, 5, 7)
    tile_plan = plan(5, 7, 16, 16, size_multiple=4)
    tile = surrounded_tile(surround(image), tile_plan, 0)
    assert tile.shape[1:] == tuple(side + 4 for side in split(image, tile_plan).shape[2:])


def pixels(*shape: int) -> np.ndarray:
    """Return float32 noise in 0..255."""
    return np.random.default_rng(0).random(shape, np.float32) * np.float32(255)


def batch(image: np.ndarray, scale: int) -> np.ndarray:
    """Return an image (C, h, w), upscaled by PyTorch in the image's precision."""
    return upscale_bicubic_batch(torch.from_numpy(image)[None], scale)[0].numpy()


def written(tile: np.ndarray, scale: int, dtype: type) -> np.ndarray:
    height, width = (scale * (side - 4) for side in tile.shape[1:])
    out = np.full((height, width, len(tile)), 7, dtype).transpose(2, 0, 1)
    write_upscaled(out, tile, scale)
    return out


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(3, 5, 5), (3, 11, 36), (1, 30, 9)])
def test_tiles_are_rounded_and_clipped(size, scale):
    numbers = np.random.default_rng(1).integers(0, 256, size, np.uint8)
    numbers[:, :, :4] = numbers[:, :, :4] // 128 * 255  # overshoots on both sides
    inner = slice(2 * scale, -2 * scale)
    exact = batch(numbers.astype(np.float64), scale)[:, inner, inner]
    for dtype, gain in ((np.uint8, 1), (np.uint16, 257)):
        for tile in (numbers, numbers.astype(np.float32)):
            found = written(tile, scale, dtype)
            assert found.dtype == dtype
            wanted = (exact * gain).clip(0, np.iinfo(dtype).max)
            assert np.abs(found - wanted).max() <= 0.51
    assert (exact < -0.5).any() or (exact > 255.5).any(), "something is clipped"


@pytest.mark.parametrize("fault", ["is missing", "fails", "is wrong"])
def test_the_numpy_path_gives_the_same_result(fault, monkeypatch):
    random = np.random.default_rng(2)
    # large, because sums halfway between two integers are rare
    tiles = {scale: random.integers(0, 256, (3, 900, 900), np.uint8) for scale in (2, 4)}
    wanted = {scale: written(tile, scale, np.uint8) for scale, tile in tiles.items()}
    shifted = tiles[4] + np.float32(0.3)
    deep = written(shifted, 4, np.uint16)

    def compile_loop(loop, **options):
        if fault == "fails":
            raise SystemError("initialization of _internal failed")
        return lambda *arguments: None

    if fault == "is missing":
        monkeypatch.setitem(sys.modules, "numba", None)
    else:
        monkeypatch.setattr(bicubic, "jit", compile_loop)
    bicubic._loop.cache_clear()
    try:
        assert bicubic._loop() is None
        for scale, tile in tiles.items():
            assert np.array_equal(written(tile, scale, np.uint8), wanted[scale])
        assert np.array_equal(written(shifted, 4, np.uint16), deep)
    finally:
        bicubic._loop.cache_clear()
