"""Write image files row by row, in bounded memory, aside and renamed.

libvips pulls its pixels, while ours are pushed as they are made. Between the two lies a thread with a short
queue, and an uncompressed PNG stream: the one format with 1 to 4 channels of 8 or 16 bits that libvips
reads from a pipe.
"""

from __future__ import annotations

import queue
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cabm.errors import InputError
from cabm.files import atomic_write
from cabm.imaging.raster import Metadata

SUFFIXES = {
    ".png": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".webp": "webp",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
}
"""Output formats by the end of a name."""

FORMATS = {"png": ".png", "tiff": ".tif", "webp": ".webp", "jpeg": ".jpg"}
"""Ends of names by output format."""

DEFAULT_QUALITY = 95
_MAX_SIDE = {"jpeg": 65500, "webp": 16383}
_BIG_TIFF_BYTES = (
    3_900_000_000  # offsets of plain TIFF have 32 bits; its compression may grow noise a little
)
_DEFAULT_DENSITY = 72 / 25.4  # pixels per mm; what readers assume where a file states nothing
_PNG_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}
_PIECE_BYTES = 4 << 20

Write = Callable[[np.ndarray], None]


@dataclass(frozen=True)
class OutputSpec:
    """An image file to be written.

    Attributes:
        height, width: pixels.
        channels: 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
        bits: 8 or 16 a channel, of the rows that are pushed; JPEG and WebP store 8.
        format: png, tiff, webp or jpeg.
        quality: 1..100, of JPEG and WebP; a WebP of 100 is lossless.
        metadata: what to say beside the pixels.
    """

    height: int
    width: int
    channels: int
    bits: int = 8
    format: str = "png"
    quality: int = DEFAULT_QUALITY
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def raw_bytes(self) -> int:
        """Size without compression."""
        stored = self.bits if self.format in ("png", "tiff") else 8
        return self.height * self.width * self.channels * stored // 8

    @property
    def estimated_bytes(self) -> int:
        """About what the file will take: upscaled photographs compress to less than this."""
        return self.raw_bytes // (2 if self.format in ("png", "tiff") else 4)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the format cannot hold and how it is stored instead, for people."""
        notes: tuple[str, ...] = ()
        if self.bits == 16 and self.format in _MAX_SIDE:
            notes += (f"{self.format} has 8 bits: rounded from 16",)
        if self.format == "jpeg" and self.channels in (2, 4):
            notes += ("jpeg has no transparency: laid on white",)
        return notes

    def check(self, path: Path) -> None:
        """Refuse an image that the format cannot hold.

        Raises:
            InputError: a side is too long for JPEG or WebP.
        """
        limit = _MAX_SIDE.get(self.format)
        if limit is not None and max(self.height, self.width) > limit:
            raise InputError(
                f"{path}: {self.width} x {self.height} pixels do not fit into {self.format}"
                f" (at most {limit} a side); use --format png or tiff"
            )


@contextmanager
def image_writer(path: Path, spec: OutputSpec) -> Iterator[Write]:
    """Yield a function that takes (n, width, channels) rows from top to bottom.

    The file appears under its name when the block ends well and all rows have come; else nothing does.

    Raises:
        InputError: the format cannot hold the image, or the file cannot be written.
    """
    spec.check(path)
    with atomic_write(path) as temporary:
        pipe = _PngPipe(spec)
        encoder = threading.Thread(target=pipe.encode, args=(temporary,), name="encode", daemon=True)
        encoder.start()
        try:
            yield pipe.write
            pipe.close()
        except BaseException:
            pipe.abort()
            raise
        finally:
            encoder.join()
            pipe.raise_failure(path)


class _PngPipe:
    """An uncompressed PNG stream from the thread that makes the rows to the one that encodes them."""

    def __init__(self, spec: OutputSpec) -> None:
        self._spec = spec
        self._bits = 8 if spec.format in _MAX_SIDE else spec.bits
        self._queue: queue.Queue[bytes | None] = queue.Queue(4)
        self._rest = memoryview(b"")
        self._ended = False
        self._aborted = False
        self._failure: str | None = None  # an exception would hold the frames, and these the rows
        self._done = threading.Event()
        self._stream = zlib.compressobj(0)
        self._rows = 0
        fields = (spec.width, spec.height, self._bits, _PNG_COLOUR_TYPE[spec.channels], 0, 0, 0)
        self._put(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", *fields)))

    def write(self, rows: np.ndarray) -> None:
        """Send rows on; waits while the encoder is behind."""
        spec = self._spec
        assert rows.shape[1:] == (spec.width, spec.channels), (rows.shape, spec)
        if spec.bits == 16 and self._bits == 8:
            rows = ((rows.astype(np.uint32) + 128) // 257).astype(np.uint8)
        row_bytes = spec.width * spec.channels * self._bits // 8
        together = max(1, _PIECE_BYTES // row_bytes)
        for top in range(0, len(rows), together):
            part = rows[top : top + together]
            scanlines = np.zeros((len(part), 1 + row_bytes), np.uint8)  # each begins with its filter: none
            big_endian = np.ascontiguousarray(part, dtype=">u2" if self._bits == 16 else np.uint8)
            scanlines[:, 1:] = big_endian.reshape(len(part), -1).view(np.uint8)
            self._put(_chunk(b"IDAT", self._stream.compress(scanlines)))
        self._rows += len(rows)

    def close(self) -> None:
        """End the stream."""
        assert self._rows == self._spec.height, f"{self._rows} of {self._spec.height} rows were written"
        self._put(_chunk(b"IDAT", self._stream.flush()) + _chunk(b"IEND", b""))
        self._put(None)

    def abort(self) -> None:
        """End the stream where it is; the encoder fails."""
        self._aborted = self._failure is None

    def raise_failure(self, path: Path) -> None:
        """Raise what stopped the encoder, unless it was `abort`."""
        if self._failure is None or self._aborted:
            return
        detail = " ".join(self._failure.split())[-160:]
        raise InputError(f"{path}: cannot be written ({detail})") from None

    def encode(self, path: Path) -> None:
        """Read the stream and write the file; the work of the encoding thread."""
        import pyvips

        try:
            source = pyvips.SourceCustom()
            source.on_read(self._read)
            options = {"access": "sequential", "unlimited": True, "fail_on": "error"}
            image = pyvips.Image.pngload_source(source, **options)
            save, save_options = _saver(self._spec)
            getattr(_with_metadata(image, self._spec), save)(str(path), **save_options)
        except BaseException as error:
            self._failure = str(error) or type(error).__name__
        finally:
            self._done.set()

    def _read(self, size: int) -> bytes:
        while not self._rest and not self._ended:
            try:
                piece = self._queue.get(timeout=0.1)
            except queue.Empty:
                if not self._aborted:
                    continue
                piece = None
            self._ended = piece is None
            self._rest = memoryview(piece or b"")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)

    def _put(self, piece: bytes | None) -> None:
        while not self._done.is_set():
            try:
                return self._queue.put(piece, timeout=0.1)
            except queue.Full:
                continue
        if piece is not None and self._failure is not None:
            raise RuntimeError(self._failure)
        return None


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)))


def _with_metadata(image: Any, spec: OutputSpec) -> Any:
    import pyvips

    metadata = spec.metadata
    if spec.format == "jpeg" and spec.channels in (2, 4):
        image = image.flatten(background=[255])
    x, y = metadata.density or (_DEFAULT_DENSITY, _DEFAULT_DENSITY)
    image = image.copy(xres=x, yres=y)
    if metadata.exif is not None:
        image.set_type(pyvips.GValue.blob_type, "exif-data", metadata.exif)
        image.set_type(pyvips.GValue.gint_type, "orientation", 1)  # the pixels are upright by now
    # WebP stores gray as RGB, for which a gray profile means nothing
    if metadata.icc is not None and not (spec.format == "webp" and spec.channels < 3):
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", metadata.icc)
    return image


def _saver(spec: OutputSpec) -> tuple[str, dict[str, Any]]:
    """libvips operation and its options: fast settings, as the files are large."""
    if spec.format == "png":
        return "pngsave", {"compression": 3, "filter": "up"}
    if spec.format == "jpeg":
        return "jpegsave", {"Q": spec.quality}
    if spec.format == "webp":
        return "webpsave", {"Q": spec.quality, "lossless": spec.quality == 100, "effort": 2}
    options: dict[str, Any] = {"compression": "deflate", "level": 3, "predictor": "horizontal"}
    if spec.raw_bytes > _BIG_TIFF_BYTES:
        options |= {"bigtiff": True, "tile": True, "tile_width": 256, "tile_height": 256}
    return "tiffsave", options
