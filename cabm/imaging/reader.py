"""Read image files in blocks of rows, with bounded memory.

libvips decodes PNG, JPEG and TIFF row by row. Other formats, interlaced PNG and progressive JPEG are
decoded whole, and so are BMP and 8-bit CIELab, by Pillow. Rasters are upright, 8- or 16-bit gray or RGB,
with or without alpha. Colours stay as stored, with their profile as metadata, unless sRGB is asked for;
colour spaces other than gray and RGB are always converted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from cabm.errors import InputError
from cabm.imaging.colour import standard
from cabm.imaging.formats import damaged, reason_of
from cabm.imaging.metadata import metadata_of
from cabm.imaging.raster import Raster
from cabm.imaging.source import ReadOptions, Source, decoding, field, find_source

# Warnings of libjpeg about headers, or about at most 16 stray bytes between segments.
_HARMLESS = re.compile(
    r"Invalid SOS parameters|unknown JFIF revision|Unknown Adobe color transform"
    r"|: (\d|1[0-6]) extraneous bytes before marker|read gave \d+ warnings"
)


@dataclass(frozen=True)
class FileRaster(Raster):
    """An image file that every pass decodes again; made by `open_raster`.

    Attributes:
        source: the picture in the file.
        findings: notes that only decoding brings.
    """

    source: Source
    findings: list[str] = dataclass_field(default_factory=list)

    @property
    def format(self) -> str:
        """Name of the file's format, see `cabm.imaging.formats`."""
        return self.source.format.name

    @property
    def all_notes(self) -> tuple[str, ...]:
        """See `Raster`."""
        return (*self.notes, *self.findings)

    def blocks(self, num_rows: int = 64) -> Iterator[np.ndarray]:
        """See `Raster`.

        Raises:
            InputError: the file is corrupt or truncated.
        """
        fail_on = "warning" if self.format == "jpeg" else "error"
        top, lost = 0, False
        while top < self.height:
            try:
                image = _standard(self.source, self.source.upright(fail_on))[0]
                region = pyvips.Region.new(image)
                while top < self.height:
                    rows = min(num_rows, self.height - top)
                    block = np.frombuffer(region.fetch(0, top, self.width, rows), self.dtype)
                    top += rows
                    yield block.reshape(rows, self.width, self.channels)
            except pyvips.Error as error:
                fail_on, lost = self._next_level(error, fail_on)
        if self.source.lacks_end and not lost:
            self._note("the end marker of the JPEG is missing; the picture is complete")

    def picture(self) -> Any:
        """Return the picture as a libvips image of the same pixels, which decodes when they are read."""
        return _standard(
            self.source, self.source.upright("none" if self.source.options.damaged else "error")
        )[0]

    def _next_level(self, error: Exception, fail_on: str) -> tuple[str, bool]:
        """Return how to go on after an error, and whether pixels are lost.

        Raises:
            InputError: the picture lost data, and that is not accepted.
        """
        reason = reason_of(error)
        if fail_on == "warning" and all(_HARMLESS.search(part) for part in reason.split("; ")):
            self._note(f"the decoder warned: {reason}")
            return "error", False
        if not self.source.options.damaged or fail_on == "none":
            found = damaged(self.source.path, error)
            option = "" if fail_on == "none" else self.source.options.damaged_option
            advice = f", or read what is left with {option}" if option else ""
            raise InputError(f"{found}{advice}") from None
        self._note(f"the file lost data, so parts of the picture are wrong ({reason})")
        return "none", True

    def _note(self, finding: str) -> None:
        if finding not in self.findings:
            self.findings.append(finding)


def open_raster(path: str | Path, options: ReadOptions | None = None) -> FileRaster:
    """Open an image file; see `cabm.imaging.formats` for the formats.

    Accepts gray, palette and RGB images with 1 to 16 bits, with or without alpha. CMYK and Lab are
    converted to sRGB. The EXIF orientation is applied. Only the first page or frame is read.

    Args:
        path: the file.
        options: how to read it.

    Raises:
        InputError: the file is missing, unreadable, too large or not an image, or its pixels have no known
            range.
    """
    source = find_source(Path(path), options or ReadOptions())
    with decoding(source.path):
        image = source.upright()
        whole = bool(field(image, "interlaced") or field(image, "jpeg-multiscan"))
        source.check_size(image.width, image.height, whole=whole)
        metadata, notes = metadata_of(image, source.tiff and source.tiff.tags, source.text)
        pages = 1 if source.tiff else field(image, "n-pages") or 1
        image, keeps_profile, conversions = _standard(source, image)
        dtype = np.dtype(np.uint8 if image.format == "uchar" else np.uint16)
        size = (image.height, image.width, image.bands)
    if not keeps_profile:
        metadata = replace(metadata, icc=None)
    if source.format.name in ("gif", "webp"):
        notes = (*source.options.first_of(pages, "frames"), *notes)
    elif pages > 1:
        notes = (f"first of {pages} pictures", *notes)
    return FileRaster(*size, dtype, metadata, source.notes + notes + conversions, source)


def _standard(source: Source, image: Any) -> tuple[Any, bool, tuple[str, ...]]:
    """Return 8- or 16-bit gray or RGB, whether its profile still holds, and what was converted."""
    if source.tiff is not None:
        wanted = source.tiff.colours + source.tiff.alpha
        if image.bands > wanted and image.interpretation in ("srgb", "rgb16"):
            image = image.extract_band(0, n=wanted)  # libtiff adds an alpha channel to subsampled colours
    return standard(source.path, image, to_srgb=source.options.to_srgb)
