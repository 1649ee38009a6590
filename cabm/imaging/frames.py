"""Files with several pictures: pages of TIFF files, and frames of animations."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyvips

from cabm.errors import InputError
from cabm.files import atomic_write
from cabm.imaging.apng import read_apng
from cabm.imaging.colour import standard
from cabm.imaging.formats import format_of
from cabm.imaging.pillow_files import libvips_image, open_with_pillow
from cabm.imaging.raster import Raster, array_raster, rounded_to_8_bits
from cabm.imaging.reader import open_raster
from cabm.imaging.source import ReadOptions, decoding, field, reading_headers
from cabm.imaging.tiff_pages import num_pictures
from cabm.imaging.tiff_tags import append_page
from cabm.imaging.writer import Animation

_USUAL_DURATION = 100  # milliseconds, where a file states none

FRAME_FORMATS = ("webp", "png", "tiff")
"""Formats that hold all frames of an animation, the best first; of these, TIFF holds pages, too."""


@dataclass(frozen=True)
class Frames:
    """The pictures in a file.

    Attributes:
        number: how many.
        animation: None for pages.
    """

    number: int
    animation: Animation | None = None

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that hold several such pictures, the best first."""
        return ("tiff",) if self.animation is None else FRAME_FORMATS

    @property
    def format(self) -> str | None:
        """The format that holds them best; None: any, for one picture."""
        return None if self.number == 1 else self.formats[0]

    def check_output(self, path: Path, file_format: str) -> None:
        """Check that a format can hold the pictures.

        Raises:
            InputError: it cannot.
        """
        if self.number > 1 and file_format not in self.formats:
            kind, advice = ("pages", "tiff") if self.animation is None else ("frames", "webp, png or tiff")
            raise InputError(
                f"{path}: {file_format} cannot hold {self.number} {kind} (--all-frames); use {advice}"
            )


def frames_of(path: Path) -> Frames:
    """Return the pictures in a TIFF, GIF, WebP or PNG file; other files count as one.

    Raises:
        InputError: the file is missing, no image, or damaged.
    """
    found = format_of(path)
    if found.name == "tiff":
        with reading_headers(path):
            return Frames(num_pictures(path))
    if found.name in ("gif", "webp"):
        with decoding(path):
            loader = f"{found.operation}load"
            image = pyvips.Operation.call(loader, os.fsencode(path), n=-1, access="sequential")
        number = field(image, "n-pages") or 1
        durations = tuple(field(image, "delay") or ())[:number]
        loop = field(image, "loop") or 0
    elif found.name == "png":
        with reading_headers(path):
            animation = read_apng(path)
        durations, loop, number = animation.durations, animation.loop, len(animation.durations) or 1
    else:
        return Frames(1)
    durations += (_USUAL_DURATION,) * (number - len(durations))
    return Frames(number, Animation(durations, loop) if number > 1 else None)


def pictures(path: Path, frames: Frames, options: ReadOptions) -> Iterator[Raster]:
    """Yield the pictures of a file one after another.

    Args:
        path: the file.
        frames: from `frames_of`.
        options: how to read it.

    Raises:
        InputError: one cannot be read.
    """
    if frames.animation is not None:
        yield from _frames(path, frames.number, options)
        return
    for number in range(frames.number):
        yield open_raster(path, options=replace(options, frame=number))


def _frames(path: Path, number: int, options: ReadOptions) -> Iterator[Raster]:
    """Yield complete frames. They are decoded once: each is stored as its difference to the one before."""
    first = open_raster(path, options=replace(options, frame=0))
    notes = first.notes
    if first.dtype == np.uint16:
        notes += ("frames of 16 bits are read with 8",)
    with open_with_pillow(path) as file, decoding(path):
        # the still picture for old programs is no frame of the animation
        still = int(getattr(file, "default_image", False))
        for at in range(number):
            file.seek(still + at)
            frame = standard(path, libvips_image(file), to_srgb=options.to_srgb)[0].numpy()
            pixels = rounded_to_8_bits(frame) if frame.dtype == np.uint16 else frame
            yield array_raster(np.atleast_3d(pixels), first.metadata, notes)


def join_pages(pages: Iterable[Path], path: Path) -> None:
    """Join TIFF files of one page each, as `cabm.imaging.writer` writes them, into one file.

    Each is read when it is its turn, so it may be made, and removed after it, by the iterable.
    """
    with atomic_write(path) as temporary, temporary.open("r+b") as joined:
        for number, page in enumerate(pages):
            with page.open("rb") as file:
                if number:
                    append_page(joined, file)
                else:
                    shutil.copyfileobj(file, joined)
