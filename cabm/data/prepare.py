"""Pack all photographs into stores, and rank patch positions of the training images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from cabm.data.layout import Pair
from cabm.data.sampling import rank_positions
from cabm.data.sources import HoldOut, PrepareSettings, test_name
from cabm.data.store import PackedStore, check_image_name, check_measurable_size, pack
from cabm.errors import InputError
from cabm.files import atomic_write

POSITIONS_FILE = "positions.npy"

Report = Callable[[str, int, int], None]
"""Called with the part, the number of finished images and the number of all images."""


def prepare(settings: PrepareSettings, scale: int, directory: Path, report: Report) -> dict[str, Any]:
    """Pack all images, and rank patch positions for informative sampling.

    Args:
        settings: sources and sampling.
        scale: factor of upscaling.
        directory: parent of the stores ``train``, ``validation`` and ``test/NAME``.
        report: called after each image.

    Returns:
        Number of images, megapixels and images whose colours became sRGB, of each store; number of
        positions and seconds per megapixel of the ranking, if there is one.

    Raises:
        InputError: a source is missing, empty or damaged, or a validation or test image is too small. The
            message names the path.
    """
    train = [pair for source in settings.train for pair in source.pairs("train", scale)]
    if isinstance(settings.validation, HoldOut):
        train, validation = _hold_out(train, settings.validation.hold_out)
    else:
        validation = list(settings.validation.pairs("validation", scale))
    parts = {"train": train, "validation": validation}
    parts |= {f"test/{test_name(source)}": list(source.pairs("test", scale)) for source in settings.test}

    summary: dict[str, Any] = {}
    for name, pairs in parts.items():
        notes: list[str] = []
        images = _read(_with_unique_names(pairs), name, scale, settings.max_pixels, report, notes)
        store = pack(images, directory / name, scale)
        summary[name.replace("/", "_")] = {
            "images": len(store),
            "megapixels": round(_pixels(store) / 1e6, 3),
            "converted_to_srgb": sum(note.startswith("converted") for note in notes),
        }
    if settings.sampling.kind == "informative":
        summary["ranking"] = _rank(settings, directory, report)
    return summary


def load_positions(directory: Path, settings: PrepareSettings, patch: int) -> np.ndarray | None:
    """Read the ranked positions of training patches.

    Args:
        directory: parent of the store ``train``.
        settings: as given to `prepare`.
        patch: side of the training patches in low-resolution pixels.

    Returns:
        (N, 3) memory-mapped integers: image, top row, left column in low-resolution pixels. None for
        uniform sampling.

    Raises:
        InputError: the positions were ranked for another patch size, or are missing or damaged.
    """
    if settings.sampling.kind == "uniform":
        return None
    if settings.sampling.patch != patch:
        raise InputError(
            f"prepare.sampling.patch is {settings.sampling.patch}, but a stage trains on {patch};"
            " use the same value"
        )
    path = directory / "train" / POSITIONS_FILE
    try:
        positions = np.load(path, mmap_mode="r", allow_pickle=False)
    # damaged headers fail while NumPy parses them, or while it computes the size from the shape
    except (OSError, ValueError, EOFError, SyntaxError, TokenError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: no ranked positions ({reason}); run the prepare stage again") from None
    if not isinstance(positions, np.ndarray):
        raise InputError(f"{path}: an archive, not ranked positions; run the prepare stage again")
    return positions


def _rank(settings: PrepareSettings, directory: Path, report: Report) -> dict[str, float]:
    store = PackedStore.open(directory / "train")
    sampling = settings.sampling
    started = time.perf_counter()
    ranked = []
    for index in range(len(store)):
        found = rank_positions(
            store.hr(index),
            store.lr(index),
            store.scale,
            lr_patch=sampling.patch,
            portion=sampling.portion,
            variant=sampling.variant,
        )
        ranked.append(np.column_stack([np.full(len(found), index), found]))
        report("ranking", index + 1, len(store))
    seconds = time.perf_counter() - started
    positions = np.concatenate(ranked).astype(np.int32)
    if not len(positions):
        raise InputError(
            f"prepare.sampling: all training images are smaller than a patch of {sampling.patch};"
            " use a smaller patch"
        )
    with atomic_write(directory / "train" / POSITIONS_FILE) as temporary, temporary.open("wb") as file:
        np.save(file, positions, allow_pickle=False)
    per_megapixel = seconds / (_pixels(store) / 1e6)
    return {"positions": len(positions), "seconds_per_megapixel": round(per_megapixel, 4)}


def _hold_out(pairs: list[Pair], number: int) -> tuple[list[Pair], list[Pair]]:
    """Split ``pairs`` into the rest and ``number`` evenly spread ones."""
    if number >= len(pairs):
        raise InputError(
            f"prepare.validation.hold_out: {number} of {len(pairs)} training images leaves none for"
            " training; lower it"
        )
    held = {round((index + 0.5) * len(pairs) / number - 0.5) for index in range(number)}
    kept = [pair for index, pair in enumerate(pairs) if index not in held]
    return kept, [pair for index, pair in enumerate(pairs) if index in held]


def _with_unique_names(pairs: list[Pair]) -> list[Pair]:
    """Add a number to names that occur in several sources."""
    taken: set[str] = set()
    named = []
    for pair in pairs:
        name = pair.name
        for number in count(2):
            if name not in taken:
                break
            name = f"{pair.name}-{number}"
        taken.add(name)
        named.append(replace(pair, name=name))
    return named


def _read(
    pairs: list[Pair], part: str, scale: int, max_pixels: int, report: Report, notes: list[str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Decode pairs one by one: name, hr, lr; what was converted is appended to ``notes``."""
    for pair in pairs:
        check_image_name(pair.name, pair.high)
    for done, pair in enumerate(pairs, start=1):
        high, low = pair.read(scale, max_pixels, notes)
        if part != "train":  # the evaluation would refuse small images after hours of training
            check_measurable_size(f"prepare.{part}", pair.name, *high.shape[:2], scale)
        yield pair.name, high, low
        report(part, done, len(pairs))


def _pixels(store: PackedStore) -> int:
    return sum(int(np.prod(store.lr_shape(index))) for index in range(len(store))) * store.scale**2
