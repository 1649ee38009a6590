"""Packing the parts: names, held-out images and ranked positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from cabm.data.layout import Pair
from cabm.data.patches import PatchSampler
from cabm.data.prepare import _hold_out, _with_unique_names, load_positions, prepare
from cabm.data.sampling import rank_positions
from cabm.data.sources import PrepareSettings
from cabm.data.store import PackedStore
from cabm.errors import InputError
from cabm.imaging.resize import crop_to_multiple, downscale
from tests.data.helpers import save_image
from tests.imaging.test_metadata import wide_gamut

INFORMATIVE = {"kind": "informative", "patch": 8, "portion": 0.2}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Folders of images with different sizes and content."""
    for index in range(5):
        save_image(tmp_path / "photos" / "train" / f"t{index}.png", 40 + index, 50, index)
    save_image(tmp_path / "photos" / "validation" / "v.png", 30, 30, 7)
    save_image(tmp_path / "photos" / "Set1" / "HR" / "s.png", 20, 20, 8)
    return tmp_path / "photos"


def make_settings(photos: Path, **changes: Any) -> PrepareSettings:
    base = {
        "train": [{"source": "folder", "path": photos / "train"}],
        "validation": {"source": "folder", "path": photos / "validation"},
        "test": [{"source": "benchmark", "root": photos, "name": "Set1"}],
    }
    return PrepareSettings.model_validate(base | changes)


def run(params: PrepareSettings, directory: Path, scale: int = 2) -> dict[str, Any]:
    return prepare(params, scale, directory, lambda part, done, total: None)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_part_is_packed(photos, tmp_path, scale):
    summary = run(make_settings(photos), tmp_path / "out", scale)
    names = {"train": ("t0", "t1", "t2", "t3", "t4"), "validation": ("v",), "test/Set1": ("s",)}
    for part, expected in names.items():
        store = PackedStore.open(tmp_path / "out" / part)
        assert store.names == expected and store.scale == scale
        assert summary[part.replace("/", "_")]["images"] == len(expected)
        for index in range(len(store)):
            assert_array_equal(store.lr(index), downscale(store.hr(index), scale))
        pixels = sum(store.hr(index)[..., 0].size for index in range(len(store)))
        assert summary[part.replace("/", "_")]["megapixels"] == round(pixels / 1e6, 3)
    assert set(summary) == {"train", "validation", "test_Set1"}
    assert len(contents(tmp_path / "out")) == 9


def test_photographs_are_read_in_srgb_and_conversions_counted(photos, tmp_path):
    array = np.asarray(Image.open(photos / "train" / "t0.png").convert("RGB"))
    Image.fromarray(array).save(photos / "train" / "t0.png", icc_profile=wide_gamut())
    summary = run(make_settings(photos), tmp_path / "out")
    assert summary["train"]["converted_to_srgb"] == 1
    assert summary["validation"]["converted_to_srgb"] == 0
    found = PackedStore.open(tmp_path / "out" / "train").hr(0).astype(int)
    expected = array[: found.shape[0], : found.shape[1], [1, 0, 2]]  # the profile exchanges red and green
    assert np.abs(found - expected).mean() < 1


def test_progress_is_reported_image_by_image(photos, tmp_path):
    seen: list[tuple[str, int, int]] = []
    params = make_settings(photos, sampling=INFORMATIVE)
    prepare(params, 2, tmp_path / "out", lambda *args: seen.append(args))
    assert seen == [
        *(("train", done, 5) for done in range(1, 6)),
        ("validation", 1, 1),
        ("test/Set1", 1, 1),
        *(("ranking", done, 5) for done in range(1, 6)),
    ]


@pytest.mark.parametrize("variant", ["greedy", "nms", "darts"])
def test_running_twice_gives_the_same_bytes(photos, tmp_path, variant):
    params = make_settings(photos, sampling=INFORMATIVE | {"variant": variant})
    run(params, tmp_path / "one")
    run(params, tmp_path / "two")
    run(params, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 10


def test_sources_are_joined_and_equal_names_numbered(photos, tmp_path):
    train = [{"source": "folder", "path": photos / name} for name in ("train", "validation", "train")]
    run(make_settings(photos, train=train), tmp_path / "out")
    names = PackedStore.open(tmp_path / "out" / "train").names
    assert names == (*(f"t{i}" for i in range(5)), "v", *(f"t{i}-2" for i in range(5)))


@given(st.lists(st.sampled_from(["x", "x-2", "x-3", "x-2-2", "y"]), max_size=12))
@settings(deadline=None, max_examples=40)
def test_numbered_names_never_collide(names):
    pairs = [Pair(name, Path(f"{index}.png"), halve=True) for index, name in enumerate(names)]
    named = _with_unique_names(pairs)
    assert len({pair.name for pair in named}) == len(names)
    assert all(new.name.startswith(name) for new, name in zip(named, names, strict=True))
    assert [(pair.high, pair.halve) for pair in named] == [(pair.high, True) for pair in pairs]


def test_validation_images_are_held_out(photos, tmp_path):
    run(make_settings(photos, validation={"hold_out": 2}), tmp_path / "out")
    assert PackedStore.open(tmp_path / "out" / "train").names == ("t0", "t2", "t4")
    held = PackedStore.open(tmp_path / "out" / "validation")
    assert held.names == ("t1", "t3")
    assert held.hr(0).shape == (40, 50, 3)


@given(st.integers(2, 300), st.data())
@settings(deadline=None, max_examples=40)
def test_held_out_images_are_spread_evenly(total, data):
    number = data.draw(st.integers(1, total - 1))
    pairs = [Pair(str(index), Path("a.png")) for index in range(total)]
    kept, held = _hold_out(pairs, number)
    assert len(held) == number
    assert sorted([*kept, *held], key=pairs.index) == pairs
    places = np.array([int(pair.name) for pair in held])
    assert number == 1 or np.ptp(np.diff(places)) <= 1
    assert abs(places.mean() - (total - 1) / 2) <= 1


@pytest.mark.parametrize("number", [5, 6])
def test_holding_out_all_images_is_refused(photos, tmp_path, number):
    with pytest.raises(InputError, match=rf"prepare\.validation\.hold_out: {number} of 5 training images"):
        run(make_settings(photos, validation={"hold_out": number}), tmp_path / "out")


def test_a_damaged_image_is_named_and_the_old_store_kept(photos, tmp_path):
    run(make_settings(photos), tmp_path / "out")
    before = contents(tmp_path / "out")
    (photos / "train" / "t3.png").write_bytes(b"nonsense")
    with pytest.raises(InputError) as caught:
        run(make_settings(photos), tmp_path / "out")
    assert str(photos / "train" / "t3.png") in str(caught.value) and "\n" not in str(caught.value)
    assert contents(tmp_path / "out") == before


def test_a_missing_source_is_found_before_anything_is_written(photos, tmp_path):
    params = make_settings(
        photos, test=[{"source": "benchmark", "root": photos, "name": name} for name in ("Set1", "Set2")]
    )
    with pytest.raises(InputError, match=r"Set2/HR: no such folder"):
        run(params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_above_the_pixel_limit_are_refused(photos, tmp_path):
    with pytest.raises(InputError, match=r"t0\.png: 50 x 40 pixels are more than the limit of 1999"):
        run(make_settings(photos, max_pixels=1999), tmp_path / "out")


def test_an_image_name_that_cannot_be_a_file_name_is_refused(photos, tmp_path):
    (photos / "train" / "t0.png").rename(photos / "train" / "t:0.png")
    with pytest.raises(InputError, match=r"t:0\.png: 't:0' is not a plain image name: it contains ':'"):
        run(make_settings(photos), tmp_path / "out")


def test_positions_of_all_images_are_ranked(photos, tmp_path):
    save_image(photos / "train" / "t1.png", 15, 90)  # too few rows for a patch of 8
    params = make_settings(photos, sampling=INFORMATIVE)
    summary = run(params, tmp_path / "out")
    positions = load_positions(tmp_path / "out", params, 8)
    assert summary["ranking"]["positions"] == len(positions)
    assert summary["ranking"]["seconds_per_megapixel"] >= 0
    assert positions.dtype == np.int32 and set(positions[:, 0]) == {0, 2, 3, 4}
    store = PackedStore.open(tmp_path / "out" / "train")
    for image in (0, 2, 3, 4):
        expected = rank_positions(store.hr(image), store.lr(image), 2, lr_patch=8, portion=0.2)
        assert_array_equal(positions[positions[:, 0] == image, 1:], expected)


def test_patches_are_drawn_from_the_ranked_positions(photos, tmp_path):
    params = make_settings(photos, sampling=INFORMATIVE | {"variant": "nms"})
    run(params, tmp_path / "out")
    positions = load_positions(tmp_path / "out", params, 8)
    store = PackedStore.open(tmp_path / "out" / "train")
    sampler = PatchSampler(store, batch_size=64, lr_patch=8, seed=0, positions=positions)
    images, tops, lefts, _ = sampler.draw(0)
    drawn = set(zip(images.tolist(), tops.tolist(), lefts.tolist(), strict=True))
    assert drawn <= {tuple(row) for row in positions.tolist()}


def test_uniform_sampling_ranks_nothing(photos, tmp_path):
    run(make_settings(photos, sampling=INFORMATIVE), tmp_path / "out")
    params = make_settings(photos)
    assert "ranking" not in run(params, tmp_path / "out")
    assert not (tmp_path / "out" / "train" / "positions.npy").exists()
    assert load_positions(tmp_path / "out", params, 24) is None


def test_positions_for_another_patch_are_refused(photos, tmp_path):
    params = make_settings(photos, sampling=INFORMATIVE)
    run(params, tmp_path / "out")
    with pytest.raises(InputError, match="patch is 8, but a stage trains on 12; use the same value"):
        load_positions(tmp_path / "out", params, 12)


def test_positions_that_are_missing_or_damaged_are_refused(photos, tmp_path):
    params = make_settings(photos, sampling=INFORMATIVE)
    path = tmp_path / "train" / "positions.npy"
    path.parent.mkdir()
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{"a": 1}], object), allow_pickle=True)
    np.savez(tmp_path / "archive.npz", a=np.zeros((2, 3)))
    np.save(tmp_path / "long.npy", np.zeros((9, 3), np.int32))
    damaged = [objects.read_bytes(), (tmp_path / "archive.npz").read_bytes()]
    damaged += [(tmp_path / "long.npy").read_bytes()[:-1], b"", b"\x93NUMPY", b"nonsense" * 20]
    for content in (None, *damaged):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_positions(tmp_path, params, 8)
        message = str(caught.value)
        assert str(path) in message and "run the prepare stage again" in message and "\n" not in message


def test_images_without_a_patch_are_refused_when_ranking(photos, tmp_path):
    params = make_settings(photos, sampling=INFORMATIVE | {"patch": 30})
    with pytest.raises(
        InputError, match="all training images are smaller than a patch of 30; use a smaller"
    ):
        run(params, tmp_path / "out")


def test_cropping_to_the_scale_comes_before_shrinking(photos, tmp_path):
    image = save_image(photos / "train" / "t0.png", 43, 53)
    run(make_settings(photos), tmp_path / "out", 4)
    assert_array_equal(PackedStore.open(tmp_path / "out" / "train").hr(0), crop_to_multiple(image, 4))
