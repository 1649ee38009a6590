from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cabm.tiling.edges import edge_score, edges_of_image
from cabm.tiling.plan import plan, split


def opencv_score(tile):
    """The released operator on one (h, w, 3) uint8 tile."""
    gray = cv2.cvtColor(np.ascontiguousarray(tile), cv2.COLOR_RGB2GRAY)
    return cv2.convertScaleAbs(cv2.Laplacian(gray, cv2.CV_16S, ksize=3)).mean()


def random_images(count, height, width, seed=0):
    """Noise of falling contrast: from saturated Laplacians to flat tiles."""
    random = np.random.default_rng(seed)
    noise = random.integers(-128, 128, (count, height, width, 3))
    contrast = np.linspace(1, 0, count).reshape(-1, 1, 1, 1)
    return (128 + noise * contrast).astype(np.uint8)


def as_tiles(images):
    return images.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("backbone", ["edsr", "idn", "srresnet"])
def test_golden(golden, backbone):
    arrays = golden(backbone)
    scores = edge_score(arrays["lr"])
    assert scores.dtype == np.float64
    assert scores.tolist() == arrays["edge_score"].tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000))
def test_equals_opencv_at_every_size(height, width, seed):
    images = random_images(5, height, width, seed)
    expected = [opencv_score(image) for image in images]
    assert edge_score(as_tiles(images)).tolist() == expected


def test_luma_equals_opencv_for_every_rounding():
    """On flat tiles with one differing pixel the score shows the luma itself."""
    random = np.random.default_rng(1)
    images = np.zeros((4096, 3, 3, 3), np.uint8)
    images[:, 1, 1] = random.integers(0, 256, (4096, 3))
    expected = [opencv_score(image) for image in images]
    assert edge_score(as_tiles(images)).tolist() == expected


def test_float_input_is_rounded_to_8_bits_and_not_modified():
    tiles = as_tiles(random_images(4, 16, 16)).astype(np.float32)
    moved = tiles + np.float32(0.4)
    moved[0, 0, 0, 0] = 300.0
    moved[0, 1, 0, 0] = -20.0
    kept = moved.copy()
    tiles[0, 0, 0, 0] = 255
    tiles[0, 1, 0, 0] = 0
    np.testing.assert_array_equal(edge_score(moved), edge_score(tiles.astype(np.uint8)))
    np.testing.assert_array_equal(moved, kept)


def test_flat_tiles_score_zero_and_no_tiles_give_no_scores():
    assert edge_score(np.full((2, 3, 8, 8), 77, np.uint8)).tolist() == [0, 0]
    assert edge_score(np.zeros((0, 3, 8, 8))).shape == (0,)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 16),
    st.integers(1, 16),
    st.sampled_from([1, 4]),
)
def test_scores_of_image_equal_those_of_its_tiles(height, width, tile, stride, multiple):
    tile *= multiple
    tile_plan = plan(height, width, tile, min(stride, tile), size_multiple=multiple)
    image = random_images(2, height, width)[0]
    planes = image.transpose(2, 0, 1)
    expected = edge_score(split(planes, tile_plan)).tolist()
    assert edges_of_image(planes, tile_plan).scores.tolist() == expected
    assert edges_of_image(planes.astype(np.float32), tile_plan).scores.tolist() == expected
    if height != 3:  # (3, W, 3) is read channels first
        assert edges_of_image(image, tile_plan).scores.tolist() == expected


def test_read_only_arrays_are_accepted_without_a_warning(recwarn):
    image = random_images(1, 20, 20)[0]
    image.flags.writeable = False
    assert edges_of_image(image, plan(20, 20, 8, 8)).scores.shape == (9,)
    assert not recwarn.list


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\)"):
        edge_score(np.zeros((2, 1, 4, 4)))
    with pytest.raises(ValueError, match=r"\(3, 8, 9\).*\(8, 8\)"):
        edges_of_image(np.zeros((3, 8, 9)), plan(8, 8, 4, 4))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(4, 60), st.sampled_from([8, 24]))
def test_edge_peaks_follow_their_definition(height, width, part):
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    tile_plan = plan(height, width, 40, 30)
    edges = edges_of_image(image, tile_plan, part)
    gray = (image.astype(np.int64) @ [9798, 19235, 3735] + (1 << 14)) >> 15
    for tile, (y0, x0, y1, x1) in enumerate(tile_plan.boxes):
        pad = [(1, 1) if length > 1 else (0, 0) for length in (y1 - y0, x1 - x0)]
        luma = np.pad(gray[y0:y1, x0:x1], pad, mode="reflect")
        luma = np.pad(luma, [(0, 0) if p[0] else (1, 1) for p in pad], mode="edge")
        laplacian = luma[:-2, :-2] + luma[:-2, 2:] + luma[2:, :-2] + luma[2:, 2:] - 4 * luma[1:-1, 1:-1]
        laplacian = np.minimum(np.abs(2 * laplacian), 255).astype(np.float64)
        assert edges.scores[tile] == pytest.approx(laplacian.mean())
        for row, column in np.ndindex(edges.peaks[tile].shape):
            ys, xs = (slice(n * part, (n + 1) * part) for n in (row, column))
            inside = laplacian[ys, xs]
            blocks = [
                inside[y : y + 8, x : x + 8]
                for y in range(0, inside.shape[0], 8)
                for x in range(0, inside.shape[1], 8)
            ]
            assert edges.peaks[tile, row, column] == pytest.approx(
                max(np.sqrt((block**2).mean()) for block in blocks)
            )


def test_part_sizes_must_be_a_multiple_of_8():
    with pytest.raises(ValueError, match="parts of 12 pixels: choose a multiple of 8"):
        edges_of_image(np.zeros((20, 20, 3), np.uint8), plan(20, 20, 20, 20), 12)
