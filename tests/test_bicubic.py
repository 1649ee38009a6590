from __future__ import annotations

import numpy as np
import pytest
import torch

from cabm.bicubic import enlarge_surrounded, surround, surrounded_tile
from cabm.resize import upscale, upscale_batch
from cabm.tiling import plan, split


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (24, 31)])
def test_a_surrounded_image_is_enlarged_as_the_projects_resize_does(size, scale):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 255
    ours = enlarge_surrounded(surround(x), scale)
    torch.testing.assert_close(ours, upscale_batch(x, scale), rtol=0, atol=1e-3)


def test_eight_bit_results_are_those_of_the_exact_resize_but_for_its_two_roundings():
    # in a range that no cubic leaves: between its two passes the exact resize also clips
    image = np.random.default_rng(0).integers(80, 176, (20, 30, 3), np.uint8)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    ours = enlarge_surrounded(surround(x), 4).round().clamp(0, 255)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - upscale(image, 4)).max() <= 1.5


def test_tiles_with_their_surroundings_are_cut_out_of_the_enlarged_image():
    image = torch.rand(3, 40, 31, generator=torch.Generator().manual_seed(0)) * 255
    tile_plan = plan(40, 31, 16, 13)
    surrounded = surround(image)
    whole = enlarge_surrounded(surrounded[None], 2)[0]
    for number, (y0, x0, y1, x1) in enumerate(tile_plan.boxes.tolist()):
        tile = enlarge_surrounded(surrounded_tile(surrounded, tile_plan, number)[None], 2)[0]
        torch.testing.assert_close(tile, whole[:, 2 * y0 : 2 * y1, 2 * x0 : 2 * x1], rtol=0, atol=1e-3)


def test_an_image_below_the_networks_size_multiple_has_tiles_of_the_padded_size():
    image = torch.rand(3, 5, 7)
    tile_plan = plan(5, 7, 16, 16, size_multiple=4)
    tile = surrounded_tile(surround(image), tile_plan, 0)
    assert tile.shape[1:] == tuple(side + 4 for side in split(image, tile_plan).shape[2:])
