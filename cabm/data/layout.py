"""Folder layouts of super-resolution data sets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from glob import escape
from pathlib import Path

import numpy as np

from cabm.errors import InputError
from cabm.imaging.formats import READABLE, is_image
from cabm.imaging.images import read_rgb8
from cabm.imaging.mark import is_result, results_left_out
from cabm.imaging.resize import crop_to_multiple, downscale
from cabm.imaging.search import find_images, left_out

logger = logging.getLogger(__name__)

_LIMIT = "prepare.max_pixels"
_DIV2K_TREE = (
    "expected {root}/DIV2K_train_HR/0001.png ... and, optionally, DIV2K_train_LR_bicubic/X4/0001x4.png"
)
_BENCHMARK_TREE = "expected {root}/HR/baby.png ... and, optionally, {root}/LR_bicubic/X4/babyx4.png"
_DIV8K_TREE = "expected {root}/HR/1201.png ... and, optionally, {root}/LR/1201.png"
_FOLDER_TREE = f"expected image files ({READABLE}) in {{root}}"


@dataclass(frozen=True)
class Pair:
    """The files of an image of a data set.

    Attributes:
        name: unique within its set.
        high: file of the high-resolution image.
        low: file of the low-resolution image; None: computed with bicubic.
        halve: whether to halve the high-resolution image first.
    """

    name: str
    high: Path
    low: Path | None = None
    halve: bool = False

    def read(
        self, scale: int, max_pixels: int, notes: list[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode the pair.

        Args:
            scale: high-resolution pixels per low-resolution pixel.
            max_pixels: largest width times height of a file.
            notes: gets what was converted in the high-resolution image.

        Returns:
            hr (H, W, 3), cropped to a multiple of the scale, and lr (H / scale, W / scale, 3), both uint8.

        Raises:
            InputError: a file cannot be read, or the sizes do not match.
        """
        high = read_rgb8(self.high, max_pixels, limit_option=_LIMIT, notes=notes)
        if min(high.shape[:2]) < scale * (1 + self.halve):
            halved = " and halving" if self.halve else ""
            raise InputError(
                f"{self.high}: {high.shape[1]}x{high.shape[0]} is too small for scale {scale}{halved}; "
                "remove it"
            )
        if self.halve:
            high = downscale(crop_to_multiple(high, 2), 2)
        high = crop_to_multiple(high, scale)
        if self.low is None:
            return high, downscale(high, scale)
        low = read_rgb8(self.low, max_pixels, limit_option=_LIMIT)
        expected = (high.shape[0] // scale, high.shape[1] // scale)
        if low.shape[:2] != expected:
            raise InputError(
                f"{self.low}: {low.shape[1]}x{low.shape[0]}, expected {expected[1]}x{expected[0]}, "
                f"1/{scale} of {self.high}; replace it"
            )
        return high, low


def folder_pairs(
    root: Path, scale: int, *, low: Path | None, recursive: bool, halve: bool
) -> Iterator[Pair]:
    """Yield the images of a plain folder, sorted by path.

    Raises:
        InputError: the folder is missing or empty, or an image has no low-resolution partner.
    """
    for path in _images(root, _FOLDER_TREE.format(root=root), recursive=recursive):
        name = path.relative_to(root).with_suffix("").as_posix().replace("/", "_")
        partner = None
        if low is not None:
            # Subfolders are mirrored, because two of them may contain the same name.
            folder = low / path.parent.relative_to(root)
            partner = _partner(folder, path.stem, scale, _FOLDER_TREE.format(root=folder))
        yield Pair(name, path, partner, halve)


def div2k_pairs(root: Path, scale: int, first: int, last: int) -> Iterator[Pair]:
    """Yield images ``first`` to ``last`` of DIV2K, from DIV2K_train_HR or DIV2K_valid_HR.

    Raises:
        InputError: an image or its low-resolution partner is missing, or ``first`` is after ``last``.
    """
    tree = _DIV2K_TREE.format(root=root)
    if first > last:
        raise InputError(f"{root}: no DIV2K images from {first} to {last}; set first and last")
    for number in range(first, last + 1):
        name = f"{number:04d}"
        parts = [
            part for part in ("train", "valid") if (root / f"DIV2K_{part}_HR" / f"{name}.png").is_file()
        ]
        if not parts:
            raise InputError(f"{root}: DIV2K image {name}.png is missing; {tree}")
        folder = root / f"DIV2K_{parts[0]}_LR_bicubic" / f"X{scale}"
        partner = _partner(folder, name, scale, tree) if folder.is_dir() else None
        yield Pair(name, root / f"DIV2K_{parts[0]}_HR" / f"{name}.png", partner)


def benchmark_pairs(root: Path, scale: int) -> Iterator[Pair]:
    """Yield the images of Set5, Set14, B100, Urban100 or a set with the same layout."""
    yield from _high_and_low(
        root, root / "LR_bicubic" / f"X{scale}", scale, _BENCHMARK_TREE.format(root=root)
    )


def div8k_pairs(root: Path, scale: int) -> Iterator[Pair]:
    """Yield the images of Test2K, Test4K or Test8K."""
    yield from _high_and_low(root, root / "LR", scale, _DIV8K_TREE.format(root=root))


def _high_and_low(root: Path, low: Path, scale: int, tree: str) -> Iterator[Pair]:
    for path in _images(root / "HR", tree, recursive=False):
        partner = _partner(low, path.stem, scale, tree) if low.is_dir() else None
        yield Pair(path.stem, path, partner)


def _images(folder: Path, tree: str, *, recursive: bool) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {tree}")
    found = find_images(folder, recursive=recursive)
    if found.unreadable:
        raise InputError(found.unreadable[0])
    images = [path for path in found.images if not is_result(path)]
    lines = (left_out(found.unsupported), results_left_out(len(found.images) - len(images)))
    skipped = "; ".join(filter(None, lines))
    if not images:
        raise InputError(f"{folder}: no images; {skipped and f'{skipped}; '}{tree}")
    if skipped:
        logger.warning("%s: %s", folder, skipped)
    return images


def _partner(folder: Path, stem: str, scale: int, tree: str) -> Path:
    """Find the low-resolution image of a name: ``NAMEx4``, as in DIV2K, or ``NAME``."""
    for name in (f"{stem}x{scale}", stem):
        found = sorted(path for path in folder.glob(f"{escape(name)}.*") if is_image(path))
        found = [path for path in found if path.stem == name]  # not NAME.old.png
        if found:
            return found[0]
    raise InputError(
        f"{folder}: no low-resolution image for {stem} ({stem}x{scale}.png or {stem}.png); {tree}"
    )
