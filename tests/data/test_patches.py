"""Training patches: aligned, evenly drawn, a function of seed and step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from cabm.data.patches import PatchSampler
from cabm.data.store import PackedStore, pack
from cabm.errors import InputError

SCALE = 2


def labelled(image: int, height: int, width: int) -> tuple[str, np.ndarray, np.ndarray]:
    """Return an image whose low-resolution pixels hold (image, row, column); hr repeats each."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    lr = np.stack([np.full_like(rows, image), rows, columns], axis=2)
    return f"image {image}", lr.repeat(SCALE, 0).repeat(SCALE, 1), lr


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PackedStore:
    directory = tmp_path_factory.mktemp("packed") / "train"
    shapes = [(9, 12), (4, 30), (8, 8), (20, 5)]  # the second has too few rows for a patch of 5
    return pack((labelled(i, *shape) for i, shape in enumerate(shapes)), directory, SCALE)


def sampler(store: PackedStore, **changes) -> PatchSampler:
    return PatchSampler(store, **{"batch_size": 8, "lr_patch": 5, "seed": 3} | changes)


def test_patches_are_contiguous_uint8(store):
    lr, hr = sampler(store).batch(0)
    assert lr.shape == (8, 3, 5, 5) and hr.shape == (8, 3, 10, 10)
    assert lr.dtype == hr.dtype == torch.uint8
    assert lr.is_contiguous() and hr.is_contiguous()


@pytest.mark.parametrize("augment", [False, True])
def test_low_and_high_resolution_are_aligned(store, augment):
    for step in range(10):
        lr, hr = sampler(store, augment=augment).batch(step)
        assert torch.equal(hr, lr.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3))


def test_without_augmentation_patches_are_crops(store):
    draws = sampler(store, augment=False)
    images, tops, lefts, symmetries = draws.draw(4)
    assert not symmetries.any()
    for patch, image, top, left in zip(draws.batch(4)[0], images, tops, lefts, strict=True):
        expected = store.lr(image)[top : top + 5, left : left + 5].transpose(2, 0, 1)
        assert np.array_equal(patch.numpy(), expected)


def test_augmentation_uses_the_eight_symmetries_of_the_square(store):
    upright, turned = sampler(store, augment=False, batch_size=400), sampler(store, batch_size=400)
    found = Counter()
    for before, after in zip(upright.batch(0)[0].numpy(), turned.batch(0)[0].numpy(), strict=True):
        turns = [np.rot90(side, k, (1, 2)) for side in (before, before[:, :, ::-1]) for k in range(4)]
        matches = [k for k, turn in enumerate(turns) if np.array_equal(turn, after)]
        assert len(matches) == 1
        found[matches[0]] += 1
    assert len(found) == 8
    assert min(found.values()) > 400 / 8 / 2


def test_every_position_of_every_image_is_equally_likely(store):
    draws = sampler(store, batch_size=10_000)
    assert draws.num_positions == 5 * 8 + 0 + 4 * 4 + 16 * 1
    images, tops, lefts, _ = draws.draw(0)
    counts = Counter(zip(images.tolist(), tops.tolist(), lefts.tolist(), strict=True))
    assert len(counts) == draws.num_positions
    expected = 10_000 / draws.num_positions
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 2 * draws.num_positions


def test_a_batch_depends_only_on_seed_and_step(store):
    first = sampler(store)
    batches = [first.batch(step) for step in range(4)]
    again = sampler(store).batch(3)  # as after a resume, without earlier draws
    assert torch.equal(batches[3][0], again[0]) and torch.equal(batches[3][1], again[1])
    assert not torch.equal(batches[2][0], batches[3][0])
    assert not torch.equal(sampler(store, seed=4).batch(3)[0], again[0])


def test_the_stream_of_positions_never_changes(store):
    """Pinned: new versions of NumPy or of this package must draw the same patches."""
    images, tops, lefts, symmetries = sampler(store, seed=0).draw(7)
    raw = np.random.Philox(key=0, counter=[0, 0, 0, 7]).random_raw(16)
    grids = [(5, 8), (0, 26), (4, 4), (16, 1)]
    places = [
        (i, top, left)
        for i, (rows, columns) in enumerate(grids)
        for top in range(rows)
        for left in range(columns)
    ]
    chosen = [places[int(word) % len(places)] for word in raw[:8]]
    assert list(zip(images, tops, lefts, strict=True)) == chosen
    assert symmetries.tolist() == [int(word) >> 61 for word in raw[8:]]
    assert raw[:2].tolist() == [14434538561428030199, 13941888672995966601]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_shards_together_are_the_batch_of_one_process(store, world):
    whole = sampler(store).batch(6)
    shards = [sampler(store, rank=rank, world=world).batch(6) for rank in range(world)]
    for side in (0, 1):
        assert torch.equal(torch.cat([shard[side] for shard in shards]), whole[side])


def test_a_batch_that_cannot_be_shared_is_refused(store):
    with pytest.raises(InputError, match="8 patches cannot be shared by 3"):
        sampler(store, rank=0, world=3)


def test_only_given_positions_are_drawn_and_evenly(store):
    positions = np.array([(0, 1, 2), (2, 3, 0), (3, 15, 0)], np.int32)
    draws = sampler(store, batch_size=3000, positions=positions)
    assert draws.num_positions == 3
    counts = Counter(zip(*(values.tolist() for values in draws.draw(0)[:3]), strict=True))
    assert set(counts) == {tuple(row) for row in positions.tolist()}
    assert min(counts.values()) > 900


def test_positions_may_be_a_memory_map(store, tmp_path):
    np.save(tmp_path / "positions.npy", np.array([(0, 1, 2), (2, 3, 0)], np.int32))
    mapped = np.load(tmp_path / "positions.npy", mmap_mode="r")
    held = np.array(mapped)
    assert torch.equal(
        sampler(store, positions=mapped).batch(0)[1], sampler(store, positions=held).batch(0)[1]
    )


@pytest.mark.parametrize(
    "row", [(4, 0, 0), (-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 5, 0), (0, 0, 8), (1, 0, 0)]
)
def test_a_position_outside_its_image_is_refused(store, row):
    with pytest.raises(InputError, match="outside its image"):
        sampler(store, positions=np.array([(0, 0, 0), row]))


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (np.zeros((3, 2), np.int64), r"shape \(3, 2\)"),
        (np.zeros((3, 3)), "type float64"),
        (np.zeros((0, 3), np.int64), "no positions"),
    ],
)
def test_positions_of_another_shape_or_type_are_refused(store, positions, message):
    with pytest.raises(InputError, match=message):
        sampler(store, positions=positions)


def test_a_patch_larger_than_all_images_is_refused(store):
    with pytest.raises(InputError, match=r"patch of 10x10 .*the largest has 9"):
        sampler(store, lr_patch=10)


def test_images_are_not_changed(store):
    before = Path(store.directory / "lr.bin").read_bytes()
    lr, _ = sampler(store).batch(0)
    lr += 1
    assert Path(store.directory / "lr.bin").read_bytes() == before
