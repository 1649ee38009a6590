"""Sources and folder layouts: files, names and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from pydantic import TypeAdapter

from cabm.data import sources
from cabm.data.layout import Pair
from cabm.data.sources import SAMPLE, SampleSource
from cabm.errors import InputError
from cabm.files import sha256_file
from cabm.imaging.resize import crop_to_multiple, downscale
from cabm.imaging.writer import OutputSpec, image_writer
from tests.data.helpers import noise, save_image

LIMIT = 10**7


def pairs(part: str = "train", scale: int = 2, **source: Any) -> list[Pair]:
    return list(TypeAdapter(sources.TestSource).validate_python(source).pairs(part, scale))


def refused(file: Path, part: str = "train", scale: int = 2, **source: Any) -> str:
    """Return the error of listing or reading, which must be one line that names the file."""
    with pytest.raises(InputError) as caught:
        for pair in pairs(part, scale, **source):
            pair.read(scale, LIMIT)
    message = str(caught.value)
    assert "\n" not in message and str(file) in message
    return message


def save_low(path: Path, high: np.ndarray, scale: int) -> np.ndarray:
    """Write a low-resolution partner that differs from a bicubic one."""
    image = noise(high.shape[0] // scale, high.shape[1] // scale, 99)
    save_image(path, *image.shape[:2], 99)
    return image


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_samples_can_be_read(scale):
    for part in ("train", "validation", "test"):
        for pair in SampleSource(source="sample").pairs(part, scale):
            high, low = pair.read(scale, LIMIT)
            assert min(high.shape[:2]) >= 256, pair.name
            assert len(np.unique(high)) > 100, pair.name
            assert low.shape == (high.shape[0] // scale, high.shape[1] // scale, 3)


def test_parts_of_the_samples_share_no_image():
    files = [pair.high for part in SAMPLE for pair in SampleSource(source="sample").pairs(part, 4)]
    assert len({sha256_file(file) for file in files}) == len(files) == sum(map(len, SAMPLE.values()))
    assert len({file.stem for file in files}) == len(files)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_low_resolution_is_computed_with_bicubic(tmp_path, scale):
    image = save_image(tmp_path / "a.png")
    (pair,) = pairs(source="folder", path=tmp_path, scale=scale)
    high, low = pair.read(scale, LIMIT)
    assert_array_equal(high, crop_to_multiple(image, scale))
    assert_array_equal(low, downscale(high, scale))


def test_images_of_a_folder_are_sorted_by_name(tmp_path):
    for name in ("b.png", "A.PNG", "c.bmp", "10.jpg", "9.webp", "d.tif"):
        save_image(tmp_path / name)
    for name in ("notes.txt", ".hidden.png", "a.png.part"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    save_image(tmp_path / "sub" / "e.png")
    assert [pair.name for pair in pairs(source="folder", path=tmp_path)] == ["10", "9", "A", "b", "c", "d"]
    found = pairs(source="folder", path=tmp_path, recursive=True)
    assert [pair.name for pair in found][-1] == "sub_e" and len(found) == 7


def test_halving_shrinks_the_original(tmp_path):
    image = save_image(tmp_path / "a.png")
    (pair,) = pairs(source="folder", path=tmp_path, halve=True)
    high, low = pair.read(2, LIMIT)
    assert_array_equal(high, downscale(crop_to_multiple(image, 2), 2)[:8, :12])
    assert_array_equal(low, downscale(high, 2))


@pytest.mark.parametrize("name", ["ax2.png", "a.png", "ax2.bmp"])
def test_given_low_resolution_is_used(tmp_path, name):
    image = save_image(tmp_path / "high" / "a.png")
    low = save_low(tmp_path / "low" / name, image, 2)
    (pair,) = pairs(source="folder", path=tmp_path / "high", low_resolution=tmp_path / "low")
    assert_array_equal(pair.read(2, LIMIT)[1], low)


def test_other_scales_and_versions_are_not_mistaken_for_the_partner(tmp_path):
    image = save_image(tmp_path / "high" / "a[1].png")
    for name in ("a[1]x3.png", "a[1].a.png", "a[1]x2.a.png", "a1.png", "a[1]0.png"):
        save_image(tmp_path / "low" / name, 5, 5)
    source = {"source": "folder", "path": tmp_path / "high", "low_resolution": tmp_path / "low"}
    assert "no low-resolution image for a[1]" in refused(tmp_path / "low", **source)
    low = save_low(tmp_path / "low" / "a[1].png", image, 2)
    (pair,) = pairs(**source)
    assert_array_equal(pair.read(2, LIMIT)[1], low)


def test_subfolders_of_low_resolution_mirror_those_of_high(tmp_path):
    for seed, folder in enumerate("pq"):
        save_image(tmp_path / "high" / folder / "1.png", 8, 8, seed)
        save_image(tmp_path / "low" / folder / "1.png", 4, 4, seed)
    source = {"source": "folder", "path": tmp_path / "high", "low_resolution": tmp_path / "low"}
    found = pairs(recursive=True, **source)
    assert [(pair.name, pair.low) for pair in found] == [
        ("p_1", tmp_path / "low" / "p" / "1.png"),
        ("q_1", tmp_path / "low" / "q" / "1.png"),
    ]
    (tmp_path / "low" / "q" / "1.png").rename(tmp_path / "low" / "1.png")
    refused(tmp_path / "low" / "q", recursive=True, **source)


def test_low_resolution_of_another_size_is_refused(tmp_path):
    save_image(tmp_path / "high" / "a.png", 17, 26)
    for size in ((8, 12), (9, 13), (13, 8), (17, 26)):
        save_image(tmp_path / "low" / "a.png", *size)
        message = refused(
            tmp_path / "low" / "a.png",
            source="folder",
            path=tmp_path / "high",
            low_resolution=tmp_path / "low",
        )
        assert f"{size[1]}x{size[0]}, expected 13x8" in message


def test_missing_and_empty_folders_are_refused(tmp_path):
    assert "no such folder" in refused(tmp_path / "absent", source="folder", path=tmp_path / "absent")
    assert "no images" in refused(tmp_path, source="folder", path=tmp_path)
    save_image(tmp_path / "sub" / "a.png")
    assert "no images" in refused(tmp_path, source="folder", path=tmp_path)
    file = tmp_path / "sub" / "a.png"
    assert "no such folder" in refused(file, source="folder", path=file)
    refused(tmp_path / "low", source="folder", path=tmp_path / "sub", low_resolution=tmp_path / "low")


def test_corrupt_images_are_refused(tmp_path):
    save_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    assert "corrupt or truncated" in refused(tmp_path / "b.png", source="folder", path=tmp_path)
    (tmp_path / "b.png").write_bytes(b"")
    assert "empty" in refused(tmp_path / "b.png", source="folder", path=tmp_path)


def test_images_smaller_than_the_scale_are_refused(tmp_path):
    save_image(tmp_path / "a.png", 20, 3)
    assert "3x20 is too small for scale 4" in refused(
        tmp_path / "a.png", source="folder", path=tmp_path, scale=4
    )
    for height in (1, 2, 3):
        save_image(tmp_path / "a.png", height, 9)
        message = refused(tmp_path / "a.png", source="folder", path=tmp_path, halve=True)
        assert f"9x{height} is too small for scale 2 and halving" in message


def test_images_larger_than_the_limit_are_refused(tmp_path):
    save_image(tmp_path / "a.png", 20, 30)
    (pair,) = pairs(source="folder", path=tmp_path)
    with pytest.raises(
        InputError,
        match=r"a\.png: 30 x 20 pixels are more than the limit of 599; .* prepare.max_pixels 600",
    ):
        pair.read(2, 599)


@pytest.fixture
def div2k(tmp_path: Path) -> dict[str, Any]:
    for number in (1, 2, 3):
        image = save_image(tmp_path / "DIV2K_train_HR" / f"{number:04d}.png")
        save_low(tmp_path / "DIV2K_train_LR_bicubic" / "X2" / f"{number:04d}x2.png", image, 2)
    save_image(tmp_path / "DIV2K_valid_HR" / "0801.png")
    return {"source": "div2k", "root": tmp_path}


def test_div2k_training_images_have_their_partners(div2k):
    found = pairs(last=3, **div2k)
    assert [pair.name for pair in found] == ["0001", "0002", "0003"]
    assert [pair.low.name for pair in found] == ["0001x2.png", "0002x2.png", "0003x2.png"]
    for pair in found:
        assert_array_equal(pair.read(2, LIMIT)[1], noise(8, 13, 99))
    assert [pair.low for pair in pairs(scale=3, last=3, **div2k)] == [None] * 3
    assert [pair.name for pair in pairs(first=2, last=2, **div2k)] == ["0002"]


@pytest.mark.parametrize("part", ["validation", "test"])
def test_div2k_validation_images_may_be_in_their_own_folder(div2k, part):
    (pair,) = pairs(part, last=801, **div2k)
    assert pair.high == div2k["root"] / "DIV2K_valid_HR" / "0801.png" and pair.low is None
    save_image(div2k["root"] / "DIV2K_train_HR" / "0801.png")
    save_image(div2k["root"] / "DIV2K_train_LR_bicubic" / "X2" / "0801x2.png", 8, 13)
    (pair,) = pairs(part, last=801, **div2k)
    assert pair.high.parent.name == "DIV2K_train_HR"


def test_div2k_files_that_are_missing_are_named(div2k):
    root = div2k["root"]
    assert "DIV2K image 0004.png is missing; expected" in refused(root, **div2k)
    assert "0802.png" in refused(root, "validation", **div2k)
    assert "from 801 to 800" in refused(root, first=801, **div2k)
    low = root / "DIV2K_train_LR_bicubic" / "X2"
    (low / "0002x2.png").unlink()
    assert "no low-resolution image for 0002" in refused(low, last=3, **div2k)


def test_benchmark_sets(tmp_path):
    image = save_image(tmp_path / "Set5" / "HR" / "baby.png")
    save_image(tmp_path / "Set5" / "HR" / "bird.jpg")
    source = {"source": "benchmark", "root": tmp_path, "name": "Set5"}
    assert [(pair.name, pair.low) for pair in pairs(**source)] == [("baby", None), ("bird", None)]
    low = save_low(tmp_path / "Set5" / "LR_bicubic" / "X2" / "babyx2.png", image, 2)
    assert "no low-resolution image for bird" in refused(tmp_path / "Set5" / "LR_bicubic" / "X2", **source)
    save_image(tmp_path / "Set5" / "LR_bicubic" / "X2" / "birdx2.png", 8, 13)
    assert_array_equal(pairs(**source)[0].read(2, LIMIT)[1], low)
    assert [pair.low for pair in pairs(scale=4, **source)] == [None, None]
    missing = source | {"name": "Set14"}
    assert "HR/baby.png" in refused(tmp_path / "Set14" / "HR", **missing)


@pytest.mark.parametrize("name", ["test2k", "test4k", "test8k"])
def test_sets_cut_from_div8k(tmp_path, name):
    image = save_image(tmp_path / "HR" / "1201.png")
    (pair,) = pairs("test", source=name, root=tmp_path)
    assert (pair.name, pair.low) == ("1201", None)
    low = save_low(tmp_path / "LR" / "1201.png", image, 2)
    (pair,) = pairs("test", source=name, root=tmp_path)
    assert_array_equal(pair.read(2, LIMIT)[1], low)
    assert "1201.png" in refused(tmp_path / "x" / "HR", "test", source=name, root=tmp_path / "x")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ({"source": "sample"}, "sample"),
        ({"source": "sample", "name": "mine"}, "mine"),
        ({"source": "folder", "path": "a/photos"}, "photos"),
        ({"source": "folder", "path": "a/photos/", "name": "mine"}, "mine"),
        ({"source": "div2k", "root": "a"}, "DIV2K"),
        ({"source": "benchmark", "root": "a", "name": "Set5"}, "Set5"),
        ({"source": "test4k", "root": "a"}, "test4k"),
    ],
)
def test_names_of_test_sets(source, name):
    assert sources.test_name(TypeAdapter(sources.TestSource).validate_python(source)) == name


def test_upscaled_images_in_a_folder_are_no_photographs(tmp_path, caplog):
    """They look like photographs, but what a network made teaches the next one its mistakes."""
    image = save_image(tmp_path / "a.png", 16, 16)
    with image_writer(tmp_path / "a_x2.png", OutputSpec(16, 16, 3)) as write:
        write(image)
    found = pairs(source="folder", name="mine", path=str(tmp_path))
    assert [pair.name for pair in found] == ["a"]
    assert "left out 1 result of earlier runs, by the mark in the metadata" in caplog.text
    (tmp_path / "a.png").unlink()
    assert "no images; left out 1 result" in refused(
        tmp_path, source="folder", name="mine", path=str(tmp_path)
    )
