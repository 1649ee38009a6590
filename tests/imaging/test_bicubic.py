from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from cabm.imaging import bicubic
from cabm.imaging.bicubic import surround, upscale_bicubic_batch, upscale_surrounded, write_upscaled
from cabm.imaging.resize import upscale_bicubic
from cabm.tiling.plan import plan, split
from cabm.upscaling.tiles import surrounded_tile
from tests.imaging.helpers import naive, noise, smooth


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4, 3)])
def test_a_batch_equals_the_naive_version_without_rounding(scale, shape):
    low = noise(2, 3, *shape, seed=5)
    batch = upscale_bicubic_batch(torch.from_numpy(low).double(), scale)
    assert batch.shape == (2, 3, shape[0] * scale, shape[1] * scale)
    expected = naive(low[1, 2], shape[0] * scale, shape[1] * scale, rounded=False)
    np.testing.assert_allclose(batch[1, 2], expected, rtol=0, atol=1e-9)
    single = upscale_bicubic_batch(torch.from_numpy(low).float(), scale)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, batch, rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_batch_differs_from_the_exact_resize_by_its_two_roundings(scale):
    low = smooth(21, 26)
    batch = upscale_bicubic_batch(torch.from_numpy(low).double()[None, None], scale)[0, 0].numpy()
    assert np.abs(batch - upscale_bicubic(low, scale)).max() < 1.5


def test_a_scale_of_one_copies_a_batch():
    batch = torch.rand(1, 3, 4, 5)
    copy = upscale_bicubic_batch(batch, 1)
    assert torch.equal(copy, batch)
    assert copy.data_ptr() != batch.data_ptr()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (24, 31)])
def test_a_surrounded_image_equals_the_batch(size, scale):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 255
    ours = upscale_surrounded(surround(x), scale)
    torch.testing.assert_close(ours, upscale_bicubic_batch(x, scale), rtol=0, atol=1e-3)


def test_a_surrounded_image_differs_from_the_exact_resize_by_its_two_roundings():
    # in a range without overshoots: between its two passes the exact resize also clips
    image = np.random.default_rng(0).integers(80, 176, (20, 30, 3), np.uint8)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    ours = upscale_surrounded(surround(x), 4).round().clamp(0, 255)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - upscale_bicubic(image, 4)).max() <= 1.5


def test_surrounded_tiles_equal_cuts_of_the_upscaled_image():
    image = torch.rand(3, 40, 31, generator=torch.Generator().manual_seed(0)) * 255
    tile_plan = plan(40, 31, 16, 13)
    surrounded = surround(image)
    whole = upscale_surrounded(surrounded[None], 2)[0]
    for number, (y0, x0, y1, x1) in enumerate(tile_plan.boxes.tolist()):
        tile = upscale_surrounded(surrounded_tile(surrounded, tile_plan, number)[None], 2)[0]
        torch.testing.assert_close(tile, whole[:, 2 * y0 : 2 * y1, 2 * x0 : 2 * x1], rtol=0, atol=1e-3)


def test_tiles_of_a_small_image_have_the_padded_size():
    image = torch.rand(3, 5, 7)
    tile_plan = plan(5, 7, 16, 16, size_multiple=4)
    tile = surrounded_tile(surround(image), tile_plan, 0)
    assert tile.shape[1:] == tuple(side + 4 for side in split(image, tile_plan).shape[2:])


def written(tile: torch.Tensor, scale: int, dtype: type) -> np.ndarray:
    height, width = (scale * (side - 4) for side in tile.shape[1:])
    out = np.full((height, width, len(tile)), 7, dtype).transpose(2, 0, 1)
    write_upscaled(out, tile, scale)
    return out


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(3, 5, 5), (3, 11, 36), (1, 30, 9)])
def test_tiles_are_rounded_and_clipped(size, scale):
    numbers = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    numbers[:, :, :4] = numbers[:, :, :4] // 128 * 255  # overshoots on both sides
    exact = upscale_bicubic_batch(numbers[None].double(), scale)[
        0, :, 2 * scale : -2 * scale, 2 * scale : -2 * scale
    ]
    for dtype, gain in ((np.uint8, 1), (np.uint16, 257)):
        for tile in (numbers, numbers.float()):
            found = written(tile, scale, dtype)
            assert found.dtype == dtype
            wanted = (exact * gain).clamp(0, np.iinfo(dtype).max).numpy()
            assert np.abs(found - wanted).max() <= 0.51
    assert (exact < -0.5).any() or (exact > 255.5).any(), "something is clipped"


@pytest.mark.parametrize("fault", ["is missing", "fails", "is wrong"])
def test_the_pytorch_path_gives_the_same_result(fault, monkeypatch):
    generator = torch.Generator().manual_seed(2)
    # large, because sums halfway between two integers are rare
    tiles = {scale: torch.randint(0, 256, (3, 900, 900), generator=generator) for scale in (2, 4)}
    wanted = {scale: written(tile, scale, np.uint8) for scale, tile in tiles.items()}
    deep = written(tiles[4].float() + 0.3, 4, np.uint16)

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
        assert np.abs(written(tiles[4].float() + 0.3, 4, np.uint16).astype(int) - deep).max() <= 1
    finally:
        bicubic._loop.cache_clear()
