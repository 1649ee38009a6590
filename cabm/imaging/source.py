"""One picture in a file: what its headers say, and how it is opened."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyvips

from cabm.errors import InputError
from cabm.imaging.formats import ImageFormat, damaged, format_of, missing_operation
from cabm.imaging.headers import read_jpeg_header, read_png_header
from cabm.imaging.pillow_files import libvips_image, open_with_pillow
from cabm.imaging.png_text import Text, read_png_text
from cabm.imaging.tiff_pages import TiffPage, find_picture

STREAMED_MAX_PIXELS = 1 << 30
"""Default limit for images that are decoded row by row."""
WHOLE_MAX_PIXELS = 1 << 27
"""Default limit for images that are decoded whole: 400 MB of RGB."""

_UPRIGHT = 1  # EXIF orientation


@dataclass(frozen=True)
class ReadOptions:
    """How to read a picture.

    Attributes:
        max_pixels: largest width times height; None: `STREAMED_MAX_PIXELS`, or `WHOLE_MAX_PIXELS` for files
            that cannot be decoded row by row.
        to_srgb: convert colours by the embedded profile.
        damaged: read what is left of a picture that lost data.
        frame: which page of a TIFF, from 0; None: the first, with a note. Of an animation always the first,
            with a note if this is None.
        limit_option, damaged_option, frames_option: what messages call the options that raise the limit,
            set ``damaged`` and take all frames; empty if the user has none.
    """

    max_pixels: int | None = None
    to_srgb: bool = False
    damaged: bool = False
    frame: int | None = None
    limit_option: str = "max_pixels"
    damaged_option: str = "damaged=True"
    frames_option: str = ""

    def first_of(self, number: int, kind: str) -> tuple[str, ...]:
        """Return the note on a file with several pictures; none if one is asked for."""
        if number < 2 or self.frame is not None:
            return ()
        advice = f"; {self.frames_option} takes all" if self.frames_option else ""
        return (f"first of {number} {kind}{advice}",)


NO_LIMIT = ReadOptions(max_pixels=1 << 62)
"""For files that were upscaled, so that their size is allowed."""


@dataclass(frozen=True)
class Source:
    """A picture in a file; made by `find_source`.

    Attributes:
        path: of the file.
        format: of the file, by its content.
        options: how to read it.
        tiff: its page; None for other formats.
        lacks_end: the end marker of a JPEG is missing.
        text: of a PNG.
        notes: what the file holds besides the picture.
    """

    path: Path
    format: ImageFormat
    options: ReadOptions
    tiff: TiffPage | None = None
    lacks_end: bool = False
    text: Text = ()
    notes: tuple[str, ...] = ()

    def open(self, access: str = "sequential", fail_on: str = "error") -> Any:
        """Return the picture as a libvips image, which decodes when its pixels are read.

        Args:
            access: ``sequential`` or ``random``.
            fail_on: ``warning``, ``error``, or ``none`` to read what is left of a damaged file.

        Raises:
            pyvips.Error: the file is damaged.
            InputError: as Pillow decodes BMP and 8-bit CIELab.
        """
        pyvips.cache_set_max(0)  # the cache would return old contents of a changed file
        if not self.format.operation or (self.tiff is not None and self.tiff.lab8):
            return self._with_pillow()
        options: dict[str, Any] = {"access": access, "fail_on": fail_on}
        if self.format.name in ("png", "jpeg", "avif"):
            options["unlimited"] = True  # the limit of this module is checked instead
        if self.tiff is not None:
            options["page"] = self.tiff.number
        loader = f"{self.format.operation}load"
        if self.lacks_end:
            data = self.path.read_bytes() + b"\xff\xd9"
            return pyvips.Operation.call(f"{loader}_buffer", data, **options)
        return pyvips.Operation.call(loader, os.fsencode(self.path), **options)

    def upright(self, fail_on: str = "error") -> Any:
        """Return the picture as by `open`, with its orientation applied."""
        image = self.open(fail_on=fail_on)
        if (field(image, "orientation") or _UPRIGHT) == _UPRIGHT:
            return image
        # Turned rows need all columns. libvips decodes once, into memory or, above 100 MB, a file.
        return self.open("random", fail_on).autorot()

    def check_size(self, width: int, height: int, *, whole: bool) -> None:
        """Check a size against the limit.

        Raises:
            InputError: the picture is too large.
        """
        whole |= self.format.whole
        limit = self.options.max_pixels
        if limit is None:  # 0 is a limit: a request may have used up its pixels
            limit = WHOLE_MAX_PIXELS if whole else STREAMED_MAX_PIXELS
        if width * height > limit:
            why = " for files that are decoded whole" if whole and self.options.max_pixels is None else ""
            option = self.options.limit_option
            advice = f"if you trust the file, raise the limit with {option} {width * height}"
            raise InputError(
                f"{self.path}: {width} x {height} pixels are more than the limit of {limit}{why};"
                f" {advice if option else 'use a smaller image'}"
            )

    def _with_pillow(self) -> Any:
        with open_with_pillow(self.path) as image:
            self.check_size(*image.size, whole=True)
            if self.tiff is not None:
                image.seek(self.tiff.number)
            return libvips_image(image)


def find_source(path: Path, options: ReadOptions) -> Source:
    """Read the headers of a file.

    Raises:
        InputError: the file is missing, unreadable, not an image, too large, or of a kind that is not
            supported.
    """
    found = format_of(path)
    reason = missing_operation(found, "load")
    if reason:
        raise InputError(f"{path}: cannot be read: {reason}; or save it as PNG or TIFF")
    source = Source(path, found, options)
    if found.name == "tiff":
        with reading_headers(path):
            page = find_picture(path, options.frame)
        notes = page.notes + options.first_of(page.num_pictures, "pages")
        return replace(source, tiff=page, notes=notes)
    if found.name == "jpeg":
        with reading_headers(path):
            header = read_jpeg_header(path)
        notes = ("first of several pictures",) if header.num_pictures > 1 else ()
        return replace(source, lacks_end=not header.has_end, notes=notes)
    png = read_png_header(path) if found.name == "png" else None
    if png is not None:
        source.check_size(png.width, png.height, whole=False)
        notes = options.first_of(png.num_frames, "frames")
        if png.colours:
            notes += (f"colours are taken as sRGB, without the PNG's {' and '.join(png.colours)}",)
        return replace(source, text=read_png_text(path), notes=notes)
    return source


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turn errors of libvips into one line that names the file."""
    try:
        yield
    except pyvips.Error as error:
        raise damaged(path, error) from None


@contextmanager
def reading_headers(path: Path) -> Iterator[None]:
    """Turn the errors that damaged headers cause into one line that names the file."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, struct.error, OSError) as error:
        raise damaged(path, error) from None


def field(image: Any, name: str) -> Any:
    """Return a field of a libvips image; None if it is absent."""
    return image.get(name) if image.get_typeof(name) else None
