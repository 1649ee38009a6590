"""Write image files row by row with libvips, atomically and with bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cabm.errors import InputError
from cabm.files import atomic_write
from cabm.imaging.formats import DEFAULT_QUALITY, OUTPUT_FORMATS, missing_operation
from cabm.imaging.mark import marked
from cabm.imaging.metadata import Metadata, photoshop_block, tiff_tags_of_exif, tiff_tags_of_iptc
from cabm.imaging.png_stream import PngStream
from cabm.imaging.png_text import append_png_text
from cabm.imaging.raster import rounded_to_8_bits
from cabm.imaging.reduce import reduced
from cabm.imaging.row_stream import RowShape, RowsNotTaken, row_stream
from cabm.imaging.tiff_tags import add_tags

# Plain TIFF has 32-bit offsets; deflate may enlarge noise a little.
_BIG_TIFF_BYTES = 3_900_000_000
_DEFAULT_DENSITY = 72 / 25.4  # pixels per mm that readers assume if a file states none


@dataclass(frozen=True)
class Animation:
    """How frames follow each other.

    Attributes:
        durations: of the frames in milliseconds.
        loop: how often they are shown; 0: for ever.
    """

    durations: tuple[int, ...]
    loop: int


@dataclass(frozen=True)
class OutputSpec:
    """An image file to write.

    Attributes:
        height, width: in pixels.
        channels: 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
        bits: per channel of the rows, 8 or 16. JPEG and WebP store 8.
        format: name of an output format, see `cabm.imaging.formats`.
        quality: of lossy formats in 1..100; WebP and AVIF at 100 are lossless.
        metadata: stored besides the pixels, as far as the format can.
        animation: of frames that are written one below the other; None: a single picture.
        file_bytes: of all pages of a TIFF file that this is the first part of, without compression.
        strip: store nothing besides the pixels and the mark of a result.
        computed: (height, width) of the rows that are written, which are reduced to the size of the file;
            None: that of the file.
    """

    height: int
    width: int
    channels: int
    bits: int = 8
    format: str = "png"
    quality: int = DEFAULT_QUALITY
    metadata: Metadata = field(default_factory=Metadata)
    strip: bool = False
    animation: Animation | None = None
    file_bytes: int = 0
    computed: tuple[int, int] | None = None

    @property
    def rows_size(self) -> tuple[int, int]:
        """Height and width of the rows that are written."""
        return self.computed or (self.num_rows, self.width)

    @property
    def stored_bits(self) -> int:
        """Bits per channel in the file."""
        return min(self.bits, OUTPUT_FORMATS[self.format].max_bits)

    @property
    def flattens_alpha(self) -> bool:
        """Whether the format cannot store the alpha channel of the rows."""
        return self.channels in (2, 4) and not OUTPUT_FORMATS[self.format].alpha

    @property
    def converts_gray_profile(self) -> bool:
        """Whether the format stores gray as RGB, which a gray profile does not describe."""
        return self.format in ("webp", "avif") and self.channels < 3 and self.metadata.icc is not None

    @property
    def num_rows(self) -> int:
        """Rows of all frames."""
        return self.height * (1 if self.animation is None else len(self.animation.durations))

    @property
    def raw_bytes(self) -> int:
        """Size without compression."""
        return self.num_rows * self.width * self.channels * (2 if self.stored_bits > 8 else 1)

    @property
    def estimated_bytes(self) -> int:
        """Estimated file size; upscaled photographs usually compress to less."""
        return self.raw_bytes // (4 if OUTPUT_FORMATS[self.format].lossy else 2)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the format cannot store, and what is stored instead; for the user."""
        notes: tuple[str, ...] = ()
        if self.stored_bits < self.bits:
            notes += (f"{self.format} has {self.stored_bits} bits: rounded from {self.bits}",)
        if self.flattens_alpha:
            notes += (f"{self.format} has no transparency: blended with white",)
        lost = () if self.strip else self.metadata.lost_in(self.format)
        if lost:
            notes += (f"{self.format} cannot hold {', '.join(lost)}: left out",)
        if self.converts_gray_profile:
            notes += (f"{self.format} stores gray as RGB: converted from its gray profile to sRGB",)
        return notes

    def check(self, path: Path) -> None:
        """Check that the format can store an image of this size.

        Raises:
            InputError: a side is too long, or libvips was built without the format.
        """
        reason = missing_operation(OUTPUT_FORMATS[self.format], "save")
        if reason:
            raise InputError(f"{path}: cannot be written: {reason}; use --format png or tiff")
        limit = OUTPUT_FORMATS[self.format].max_side
        if limit is not None and max(self.height, self.width) > limit:
            raise InputError(
                f"{path}: {self.width} x {self.height} pixels do not fit into {self.format}"
                f" (at most {limit} per side); use --format png or tiff"
            )


class RowWriter:
    """Takes the rows of an image, which another thread encodes; made by `image_writer`."""

    def __init__(self, stream: PngStream, spec: OutputSpec) -> None:
        self._stream, self._spec = stream, spec

    def __call__(self, rows: np.ndarray) -> None:
        """Append (n, width, channels) rows, from top to bottom; waits while the encoder is behind."""
        rounds = self._spec.stored_bits == 8 < self._spec.bits
        self._stream.write(rounded_to_8_bits(rows) if rounds else rows)

    def end(self) -> None:
        """Tell the encoder that these were all rows, without waiting until it is done."""
        self._stream.close()

    @property
    def encoded(self) -> bool:
        """Whether the encoder is done; leaving the block then takes no time."""
        return self._stream.reader_is_done


@contextmanager
def image_writer(path: Path, spec: OutputSpec) -> Iterator[RowWriter]:
    """Yield what takes the image's rows.

    The file appears under its name when the block ends without an error, after all rows.

    Raises:
        InputError: the format cannot store the image, or the file cannot be written.
    """
    spec.check(path)
    rows = RowShape(*spec.rows_size, spec.channels, 16 if spec.stored_bits > 8 else 8)
    try:
        with atomic_write(path) as temporary, row_stream(rows, partial(_save, temporary, spec)) as stream:
            yield RowWriter(stream, spec)
    except RowsNotTaken as error:
        detail = " ".join(str(error).split())[-160:]
        raise InputError(f"{path}: cannot be written ({detail})") from None


def _save(path: Path, spec: OutputSpec, rows: Any) -> None:
    """Write the rows, a sequential libvips image, to a file; runs in the encoding thread."""
    save, options = _saver(spec)
    image = _with_metadata(reduced(rows, spec.num_rows, spec.width), spec)
    getattr(image, save)(os.fsencode(path), **options)
    if spec.format == "tiff" and not spec.strip:
        _add_tiff_tags(path, spec)
    if spec.format == "png" and spec.metadata.text and not spec.strip:
        append_png_text(path, spec.metadata.text)


def _with_metadata(image: Any, spec: OutputSpec) -> Any:
    import pyvips

    metadata = spec.metadata
    if spec.flattens_alpha:
        image = image.flatten(background=[255])
    if spec.converts_gray_profile:
        from cabm.imaging.colour import gray_to_srgb

        image = gray_to_srgb(image, metadata.icc)
    x, y = metadata.density or (_DEFAULT_DENSITY, _DEFAULT_DENSITY)
    image = image.copy(xres=x, yres=y)
    blob, integer = pyvips.GValue.blob_type, pyvips.GValue.gint_type
    if spec.animation is not None:
        image.set_type(integer, "page-height", spec.height)
        image.set_type(integer, "loop", spec.animation.loop)
        image.set_type(pyvips.GValue.array_int_type, "delay", list(spec.animation.durations))
    image.set_type(blob, "xmp-data", marked(metadata.xmp, spec.width, spec.height))
    if metadata.exif is not None and spec.format != "tiff":
        image.set_type(blob, "exif-data", metadata.exif)
        image.set_type(integer, "orientation", 1)  # the reader applied the orientation
    if metadata.icc is not None and not spec.converts_gray_profile:
        image.set_type(blob, "icc-profile-data", metadata.icc)
    if metadata.iptc is not None and spec.format == "jpeg":
        image.set_type(blob, "iptc-data", photoshop_block(metadata.iptc))
    return image


def _add_tiff_tags(path: Path, spec: OutputSpec) -> None:
    """Add what libvips does not store in TIFF: EXIF, IPTC and GeoTIFF tags."""
    metadata = spec.metadata
    added = dict(metadata.geo or {})
    if metadata.exif is not None:
        added |= tiff_tags_of_exif(metadata.exif, spec.width, spec.height)
    if metadata.iptc is not None:
        added |= tiff_tags_of_iptc(metadata.iptc)
    if added:
        with path.open("r+b") as file:
            add_tags(file, added)


def _saver(spec: OutputSpec) -> tuple[str, dict[str, Any]]:
    """Return the libvips operation and its options: fast settings, as the files are large."""
    options: dict[str, Any] = {"keep": "xmp"} if spec.strip else {}
    lossless = spec.quality == 100
    if spec.format == "png":
        options |= {"compression": 3, "filter": "up"}
    elif spec.format == "jpeg":
        options |= {"Q": spec.quality}
    elif spec.format == "webp":
        options |= {"Q": spec.quality, "lossless": lossless, "effort": 2}
    elif spec.format == "avif":
        options |= {"compression": "av1", "Q": spec.quality, "effort": 2}
        options |= {"lossless": lossless, "bitdepth": spec.stored_bits}
    elif spec.format == "jxl":
        options |= {"Q": spec.quality, "lossless": lossless, "effort": 3}
    else:
        options |= {"compression": "deflate", "level": 3, "predictor": "horizontal"}
        if max(spec.raw_bytes, spec.file_bytes) > _BIG_TIFF_BYTES:
            options |= {"bigtiff": True, "tile": True, "tile_width": 256, "tile_height": 256}
    return f"{OUTPUT_FORMATS[spec.format].operation}save", options
