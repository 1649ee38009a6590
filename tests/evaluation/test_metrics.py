from __future__ import annotations

import math
from dataclasses import dataclass

import imageio.v3 as iio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cabm.evaluation.quality import psnr_y, ssim_y
from cabm.tables.cost import bitops, fab
from cabm.tiling.plan import plan


@dataclass
class Layer:
    macs_per_pixel: float
    adaptive: bool
    fixed_bits: int = 32


def pair(height, width, noise=12, seed=0):
    random = np.random.default_rng(seed)
    hr = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    hr = np.sort(hr, axis=1)  # some structure beside the noise
    sr = np.clip(hr + random.normal(0, noise, hr.shape), 0, 255).astype(np.uint8)
    return sr, hr


def luma(image):
    """BT.601 luma with the divisor of the released code, written out."""
    r, g, b = (image[..., channel].astype(float) for channel in range(3))
    return (65.738 * r + 129.057 * g + 25.064 * b) / 256 + 16


def inside(image, shave):
    return image[shave : image.shape[0] - shave, shave : image.shape[1] - shave]


# Wide and tall enough for more than one strip.
SIZES = [(24, 19), (21, 3100), (900, 130)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shave", [0, 4])
def test_psnr_equals_scikit_image(size, shave):
    sr, hr = pair(*size)
    x, y = inside(sr, shave), inside(hr, shave)
    expected = peak_signal_noise_ratio(luma(y), luma(x), data_range=255)
    assert psnr_y(sr, hr, shave) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shave", [0, 4])
def test_ssim_equals_scikit_image(size, shave):
    sr, hr = pair(*size)
    expected = structural_similarity(
        luma(inside(sr, shave)),
        luma(inside(hr, shave)),
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim_y(sr, hr, shave) == pytest.approx(expected, abs=1e-10)


@given(st.integers(1, 200))
def test_psnr_of_a_constant_error(error):
    hr = np.zeros((8, 9, 3), np.uint8)
    sr = np.full_like(hr, error)
    closed_form = 20 * math.log10(255 / error)
    # The luma weights add up to 219.859 / 256.
    assert psnr_y(sr, hr, 1) == pytest.approx(closed_form + 20 * math.log10(256 / 219.859))


def test_gray_counts_as_equal_channels():
    sr, hr = (image[..., 0] for image in pair(30, 40))
    as_rgb = [np.repeat(image[..., None], 3, axis=2) for image in (sr, hr)]
    assert psnr_y(sr, hr, 2) == pytest.approx(psnr_y(*as_rgb, 2))
    assert ssim_y(sr, hr, 2) == pytest.approx(ssim_y(*as_rgb, 2))


def test_equal_images():
    _, hr = pair(30, 40)
    assert psnr_y(hr, hr, 4) == math.inf
    assert ssim_y(hr, hr, 4) == pytest.approx(1)


def test_only_the_border_is_shaved():
    sr, hr = pair(30, 40, noise=0)
    sr[3] ^= 64
    assert psnr_y(sr, hr, 4) == math.inf
    assert psnr_y(sr, hr, 3) < 50


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
def test_images_that_cannot_be_compared_are_refused(metric):
    sr, hr = pair(30, 40)
    with pytest.raises(ValueError, match=r"\(30, 39, 3\)"):
        metric(sr[:, 1:], hr, 4)
    with pytest.raises(ValueError, match="float64"):
        metric(sr.astype(float), hr, 4)
    with pytest.raises(ValueError, match="too small"):
        metric(sr, hr, 15)


def test_protocol_gives_published_bicubic_figures(shared_data):
    """Bicubic on Set5 x4: 28.43 dB, 0.811 (both halves by the MATLAB-exact resize)."""
    resize = pytest.importorskip("cabm.imaging.resize")
    psnr, ssim = [], []
    for path in sorted((shared_data / "Set5" / "HR").iterdir()):
        hr = resize.crop_to_multiple(iio.imread(path), 4)
        sr = resize.upscale_bicubic(resize.downscale(hr, 4), 4)
        psnr.append(psnr_y(sr, hr, 4))
        ssim.append(ssim_y(sr, hr, 4))
    assert len(psnr) == 5
    assert np.mean(psnr) == pytest.approx(28.43, abs=0.005)
    assert np.mean(ssim) == pytest.approx(0.811, abs=0.0005)


def test_fab_leaves_out_bypassed_tiles():
    bits = np.array([[4, 8], [0, 0], [6, 6]])
    assert fab(bits) == 6
    assert fab(bits[0]) == 6
    assert fab(np.zeros((3, 2))) == 0


LAYERS = [
    Layer(3.0, False),
    Layer(100.0, True),
    Layer(7.0, False, fixed_bits=8),
    Layer(10.0, True),
]
FLOAT = 3 * 32 * 32


def test_bitops_by_hand():
    """Two tiles of 4 x 4 that overlap by 2 columns: 4 x 6 pixels, 12 owned by each."""
    tile_plan = plan(4, 6, 4, 2)
    bits = [[4, 8], [6, 6]]
    first = FLOAT + 100 * 8 * 4 + 7 * 8 * 8 + 10 * 8 * 8
    second = FLOAT + 100 * 8 * 6 + 7 * 8 * 8 + 10 * 8 * 6
    assert bitops(LAYERS, bits, tile_plan, convention="tile") == 16 * (first + second)
    assert bitops(LAYERS, bits, tile_plan, convention="image") == 12 * (first + second)

    same = 2 * FLOAT + 100 * 16 + 7 * 64 + 10 * 64 + 100 * 36 + 7 * 64 + 10 * 36
    found = bitops(LAYERS, bits, tile_plan, convention="image", weight_bits="same")
    assert found == 12 * same

    assert bitops(LAYERS, None, tile_plan, convention="image") == 24 * 120 * 32 * 32


def test_bitops_count_only_computed_pixels():
    tile_plan = plan(4, 8, 4, 4)
    bits = [[0, 0], [4, 8]]
    found = bitops(LAYERS, bits, tile_plan, convention="tile", computed=[0, 1])
    assert found == 16 * (FLOAT + 100 * 32 + 7 * 64 + 10 * 64)
    assert bitops(LAYERS, bits, tile_plan, convention="tile", computed=[0, 0.25]) == found / 4


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 16), st.integers(1, 16))
def test_conventions_agree_without_overlap(height, width, tile, stride):
    stride = min(stride, tile)
    tile_plan = plan(height, width, tile, stride)
    in_tiles = bitops(LAYERS, [4, 8], tile_plan, convention="tile")
    image = bitops(LAYERS, [4, 8], tile_plan, convention="image")
    whole = plan(height, width, max(height, width), 1)
    assert image == pytest.approx(bitops(LAYERS, [4, 8], whole, convention="tile"))
    assert in_tiles >= image * (1 - 1e-12)
    if tile == stride and height % tile == 0 and width % tile == 0:
        assert in_tiles == pytest.approx(image)


def test_bitops_refuse_bits_that_do_not_fit():
    tile_plan = plan(4, 8, 4, 4)
    with pytest.raises(ValueError, match=r"\(3, 2\) for 2 tiles of 2"):
        bitops(LAYERS, np.full((3, 2), 8), tile_plan, convention="tile")
    with pytest.raises(ValueError, match="'patch'"):
        bitops(LAYERS, [8, 8], tile_plan, convention="patch")
