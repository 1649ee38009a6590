"""The contrast limit against closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cabm.tiling.contrast import limit_contrast


def stripes(low: float, high: float) -> torch.Tensor:
    tile = torch.full((1, 3, 4, 6), low)
    tile[..., ::2] = high
    return tile


def test_black_and_white_stripes_by_hand():
    limited = limit_contrast(stripes(0, 255).to(torch.uint8), 63.75)
    assert limited.factor.item() == 2
    assert torch.equal(limited.pixels, stripes(63.75, 191.25))
    assert torch.equal(limited.restore(limited.pixels), stripes(0, 255))


def test_contrast_is_the_mean_of_the_channels():
    tile = stripes(50, 50)
    tile[:, 1] = stripes(0, 240)[:, 1]  # deviations 0, 120, 0
    limited = limit_contrast(tile, 20)
    assert limited.factor.item() == pytest.approx(2)
    assert torch.equal(limited.pixels[:, 0], tile[:, 0])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 130), st.sampled_from([torch.uint8, torch.float32]))
def test_what_enters_is_within_the_limit_and_comes_back(seed, limit, dtype):
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(5, 1, 1, 1, generator=generator)
    tiles = (128 + share * (torch.rand(5, 3, 7, 5, generator=generator) * 255 - 128)).to(dtype)
    limited = limit_contrast(tiles, limit)
    deviation = limited.pixels.double().std(dim=(2, 3), correction=0).mean(1)
    assert (deviation <= limit * (1 + 1e-5)).all()
    kept = limited.factor.flatten() == 1
    assert torch.equal(limited.pixels[kept], tiles[kept].float())
    torch.testing.assert_close(limited.restore(limited.pixels), tiles.float(), rtol=0, atol=1e-3)
    bright = limited.pixels.repeat_interleave(2, 3) + 0.5  # a network's result has another size
    added = limited.restore(bright) - tiles.float().repeat_interleave(2, 3)
    torch.testing.assert_close(added, (0.5 * limited.factor).expand_as(added), rtol=0, atol=1e-3)
