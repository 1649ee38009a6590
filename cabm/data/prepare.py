"""The prepare stage: sources to packed stores, and ranked patch positions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from cabm.data.layout import Pair
from cabm.data.sampling import rank_positions
from cabm.data.sources import HoldOut, PrepareSettings, read_pairs, test_name
from cabm.data.store import PackedStore, check_measurable_size, pack
from cabm.errors import InputError
from cabm.files import atomic_write

POSITIONS_FILE = "positions.npy"

Report = Callable[[str, int, int], None]


def prepare(settings: PrepareSettings, scale: int, directory: Path, report: Report) -> dict[str, Any]:
    """Pack all images and rank patch positions where informative sampling is asked for.

    Args:
        settings: sources.
        scale: upscaling.
        directory: gets ``train``, ``validation`` and ``test/NAME``.
        report: called with what is packed, images done and images in all.

    Returns:
        Images and megapixels by set; seconds per megapixel of the ranking, if done.

    Raises:
        InputError: a source is missing, empty or damaged, or an image to measure on is too small; the
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
        named = _with_unique_names(pairs)
        images = read_pairs(named, scale, settings.max_pixels)
        if name != "train":
            images = _measurable(images, name, scale)
        store = pack(_reported(images, name, len(named), report), directory / name, scale)
        summary[name.replace("/", "_")] = {
            "images": len(store),
            "megapixels": round(_pixels(store) / 1e6, 3),
        }
    if settings.sampling.kind == "informative":
        summary["ranking"] = _rank(settings, directory, report)
    return summary


def load_positions(directory: Path, settings: PrepareSettings, patch: int) -> np.ndarray | None:
    """Return the ranked positions (N,3) of training patches, None for uniform sampling.

    Raises:
        InputError: they were ranked for another patch, or are missing.
    """
    if settings.sampling.kind == "uniform":
        return None
    if settings.sampling.patch != patch:
        raise InputError(
            f"prepare.sampling.patch is {settings.sampling.patch}, a step trains on {patch}: set both alike"
        )
    path = directory / "train" / POSITIONS_FILE
    try:
        positions = np.load(path, mmap_mode="r", allow_pickle=False)
    # numpy parses a header, and multiplies its shape before it looks for the values
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
            f"prepare.sampling: no training image holds a patch of {sampling.patch}; use a smaller one"
        )
    with atomic_write(directory / "train" / POSITIONS_FILE) as temporary, temporary.open("wb") as file:
        np.save(file, positions, allow_pickle=False)
    per_megapixel = seconds / (_pixels(store) / 1e6)
    return {"positions": len(positions), "seconds_per_megapixel": round(per_megapixel, 4)}


def _hold_out(pairs: list[Pair], number: int) -> tuple[list[Pair], list[Pair]]:
    """Split off ``number`` pairs spread evenly over all."""
    if number >= len(pairs):
        raise InputError(
            f"prepare.validation.hold_out: {number} of {len(pairs)} training images leaves none; lower it"
        )
    held = {round((index + 0.5) * len(pairs) / number - 0.5) for index in range(number)}
    kept = [pair for index, pair in enumerate(pairs) if index not in held]
    return kept, [pair for index, pair in enumerate(pairs) if index in held]


def _with_unique_names(pairs: list[Pair]) -> list[Pair]:
    """Number the names that several sources share."""
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


def _measurable(
    images: Iterable[tuple[str, np.ndarray, np.ndarray]], part: str, scale: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Refuse images that are too small to be measured, before they cost hours of training."""
    for name, high, low in images:
        check_measurable_size(f"prepare.{part}", name, *high.shape[:2], scale)
        yield name, high, low


def _reported(
    images: Iterable[tuple[str, np.ndarray, np.ndarray]], part: str, total: int, report: Report
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for done, image in enumerate(images, start=1):
        yield image
        report(part, done, total)


def _pixels(store: PackedStore) -> int:
    return sum(int(np.prod(store.lr_shape(index))) for index in range(len(store))) * store.scale**2
