"""The packed store: a round trip, and refusal of every kind of damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from cabm.data.store import PackedStore, pack
from cabm.errors import InputError
from tests.data.helpers import assert_pixels_as_packed, make_pairs, make_store

Index = dict[str, Any]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("packed") / "store", (3, 4), (5, 2), (1, 1)).directory


@pytest.fixture
def directory(packed: Path, tmp_path: Path) -> Path:
    """Return a copy to damage."""
    return Path(shutil.copytree(packed, tmp_path / "store"))


def refused(directory: Path, file: str = "index.json") -> str:
    with pytest.raises(InputError) as caught:
        PackedStore.open(directory)
    message = str(caught.value)
    assert "\n" not in message and str(directory / file) in message
    return message


def change(directory: Path, edit: Callable[[Index], object]) -> None:
    path = directory / "index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_round_trip(tmp_path, scale):
    pairs = make_pairs((3, 4), (5, 2), (1, 1), scale=scale)
    for store in (pack(iter(pairs), tmp_path / "s", scale), PackedStore.open(str(tmp_path / "s"))):
        assert (len(store), store.names, store.scale) == (3, ("a", "b", "c"), scale)
        for index, (_, high, low) in enumerate(pairs):
            assert_array_equal(store.hr(index), high)
            assert_array_equal(store.lr(index), low)
            assert store.lr_shape(index) == low.shape[:2]
        assert_pixels_as_packed(tmp_path / "s")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["hr.bin", "index.json", "lr.bin", "s"]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5), st.integers(1, 4))
@settings(deadline=None, max_examples=15)
def test_round_trip_of_any_sizes(tmp_path_factory, sizes, scale):
    directory = tmp_path_factory.mktemp("any") / "store"
    pairs = make_pairs(*sizes, scale=scale)
    store = pack(pairs, directory, scale)
    for index, (_, high, low) in enumerate(pairs):
        assert_array_equal(store.hr(index), high)
        assert_array_equal(store.lr(index), low)


def test_images_are_read_only_views(packed):
    store = PackedStore.open(packed)
    for image in (store.hr(0), store.lr(0)):
        assert type(image) is np.ndarray and not image.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            image[0, 0, 0] = 1


def test_transposed_images_are_packed_in_their_order(tmp_path):
    (name, high, low), *_ = make_pairs((6, 6))
    turned = (name, high.transpose(1, 0, 2), low.transpose(1, 0, 2))
    store = pack([turned], tmp_path / "s", 2)
    assert_array_equal(store.hr(0), turned[1])
    assert_array_equal(store.lr(0), turned[2])


def test_the_same_pairs_give_the_same_bytes(tmp_path):
    one, two = (make_store(tmp_path / name, (3, 4), (5, 2)) for name in "ab")
    for file in ("hr.bin", "lr.bin", "index.json"):
        assert (one.directory / file).read_bytes() == (two.directory / file).read_bytes()
    assert one.sha256 == two.sha256 != make_store(tmp_path / "c", (5, 2), (3, 4)).sha256


def test_packing_again_replaces_the_store(tmp_path):
    make_store(tmp_path / "s", (3, 4), (5, 2))
    (tmp_path / "s" / "positions.npy").touch()
    assert len(make_store(tmp_path / "s", (2, 2))) == 1
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["hr.bin", "index.json", "lr.bin"]


def test_a_failure_while_packing_keeps_the_old_store(tmp_path):
    before = make_store(tmp_path / "s", (3, 4))

    def pairs():
        yield from make_pairs((2, 2))
        raise InputError("bad.png: no such image file")

    with pytest.raises(InputError, match=r"bad\.png"):
        pack(pairs(), tmp_path / "s", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert PackedStore.open(tmp_path / "s").sha256 == before.sha256


def test_an_empty_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="no images to pack"):
        pack([], tmp_path / "s", 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a\\b", "../a", "/etc/passwd", "a\nb", "a\x00", "c:", 'a"b', "a*", "a" * 201],
)
def test_names_that_cannot_be_file_names_are_refused(tmp_path, directory, name):
    (_, high, low), *_ = make_pairs((2, 2))
    with pytest.raises(InputError, match="not a plain image name") as caught:
        pack([(name, high, low)], tmp_path / "s", 2)
    assert "\n" not in str(caught.value)
    change(directory, lambda index: index["images"][1].update(name=name))
    assert "not a plain image name" in refused(directory)


def test_plain_names_of_any_language_are_kept(tmp_path):
    names = ("übung (1)", "写真", "a.b-c_d", " x")
    pairs = [
        (name, high, low) for name, (_, high, low) in zip(names, make_pairs(*[(2, 2)] * 4), strict=True)
    ]
    assert pack(pairs, tmp_path / "s", 2).names == names


def test_equal_names_are_refused(tmp_path, directory):
    pair, *_ = make_pairs((2, 2))
    with pytest.raises(InputError, match="two images are named 'a'"):
        pack([pair, pair], tmp_path / "s", 2)
    change(directory, lambda index: index["images"][1].update(name="a"))
    assert "two images are named 'a'" in refused(directory)


@pytest.mark.parametrize("file", ["hr", "lr"])
@pytest.mark.parametrize("offset", [-3, 0, 1, 35, 37, 10**6, 2**63, 2**200])
def test_offsets_that_overlap_leave_gaps_or_end_outside_are_refused(directory, file, offset):
    change(directory, lambda index: index["images"][1].update({f"{file}_offset": offset}))
    assert f"{file}_offset" in refused(directory) if offset < 0 else refused(directory)


@pytest.mark.parametrize("value", ["0", 1.0, 0.5, None, True, [0], {}, float("nan")])
@pytest.mark.parametrize("key", ["height", "width", "hr_offset", "lr_offset"])
def test_numbers_of_another_type_are_refused(directory, key, value):
    change(directory, lambda index: index["images"][0].update({key: value}))
    assert f"images.0.{key}" in refused(directory)


@pytest.mark.parametrize(
    "edit",
    [
        lambda index: index.update(format="cabm.packed/2"),
        lambda index: index.update(format=None),
        lambda index: index.update(scale=0),
        lambda index: index.update(scale=-2),
        lambda index: index.update(scale=4),
        lambda index: index.update(scale=65),
        lambda index: index.update(scale=2.0),
        lambda index: index.update(scale=True),
        lambda index: index.update(extra=1),
        lambda index: index.update(images=[]),
        lambda index: index.update(images={}),
        lambda index: index.update(images=[1]),
        lambda index: index.pop("images"),
        lambda index: index.pop("format"),
        lambda index: index["images"].pop(),
        lambda index: index["images"].pop(0),
        lambda index: index["images"].reverse(),
        lambda index: index["images"].append(dict(index["images"][2], name="d")),
        lambda index: index["images"][0].update(extra=1),
        lambda index: index["images"][0].update(name=3),
        lambda index: index["images"][0].pop("height"),
        lambda index: index["images"][0].update(height=0),
        lambda index: index["images"][0].update(height=-6),
        lambda index: index["images"][0].update(height=7),
        lambda index: index["images"][0].update(height=8),
        lambda index: index["images"][0].update(height=2**20, width=2**20),
        lambda index: index["images"][0].update(height=2**62),
        lambda index: index["hr"].update(sha256="0"),
        lambda index: index["hr"].update(sha256="Z" * 64),
        lambda index: index["hr"].update(sha256=None),
        lambda index: index["lr"].update(size=-1),
        lambda index: index["lr"].update(size="81"),
        lambda index: index.update(lr=[]),
    ],
)
def test_a_changed_index_is_refused(directory, edit):
    change(directory, edit)
    refused(directory)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", "\x00", "[" * 100_000])
def test_an_index_that_is_not_an_object_is_refused(directory, text):
    (directory / "index.json").write_text(text)
    refused(directory)


@pytest.mark.parametrize("file", ["hr.bin", "lr.bin"])
def test_pixel_files_of_another_length_are_refused(directory, file):
    path = directory / file
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"\x00", b""):
        path.write_bytes(damaged)
        assert f"has {len(damaged)} bytes" in refused(directory, file)
    path.unlink()
    assert "no such file" in refused(directory, file)


def test_a_missing_index_or_folder_is_refused(directory):
    (directory / "index.json").unlink()
    assert "no such file" in refused(directory)
    shutil.rmtree(directory)
    with pytest.raises(InputError, match="no such directory; run the prepare stage"):
        PackedStore.open(directory)


def test_the_hash_depends_on_the_recorded_hashes(directory):
    before = PackedStore.open(directory).sha256
    change(directory, lambda index: index["hr"].update(sha256="0" * 64))
    assert PackedStore.open(directory).sha256 != before
