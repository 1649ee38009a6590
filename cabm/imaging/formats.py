"""The image file formats that the package reads and writes, in one table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cabm.errors import InputError


@dataclass(frozen=True)
class ImageFormat:
    """One file format.

    Attributes:
        title: name in messages.
        suffixes: file name suffixes in lower case; new files get the first.
        signature: regular expression for the first bytes of a file.
        max_bits: largest number of bits per channel that is written, 8 or 16.
        max_side: longest side in pixels; None if the format sets no practical limit.
        alpha: whether the format stores transparency.
        lossy: whether the format is compressed with loss, at a quality of 1..100.
        written: whether `cabm.imaging.writer` writes the format.
    """

    title: str
    suffixes: tuple[str, ...]
    signature: bytes
    max_bits: int = 16
    max_side: int | None = None
    alpha: bool = True
    lossy: bool = False
    written: bool = True

    @property
    def name(self) -> str:
        """Name in options: ``png``, ``tiff``, ..."""
        return self.title.lower()

    @property
    def suffix(self) -> str:
        """Suffix of new files."""
        return self.suffixes[0]


_TABLE = (
    ImageFormat("PNG", (".png",), rb"\x89PNG\r\n\x1a\n"),
    ImageFormat("TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]"),
    ImageFormat("WebP", (".webp",), rb"RIFF.{4}WEBP", max_bits=8, max_side=16383, lossy=True),
    ImageFormat(
        "JPEG", (".jpg", ".jpeg"), rb"\xff\xd8\xff", max_bits=8, max_side=65500, alpha=False, lossy=True
    ),
    ImageFormat("BMP", (".bmp",), rb"BM", max_bits=8, written=False),
)
_SIGNATURE_BYTES = 12

OUTPUT_FORMATS = {entry.name: entry for entry in _TABLE if entry.written}
"""The formats of upscaled images by name."""

SUFFIXES = {suffix: entry for entry in _TABLE for suffix in entry.suffixes}
"""All formats by file name suffix."""

# Image files that the package neither reads nor writes. An output with such a name is not a folder.
_OTHER_SUFFIXES = frozenset({".gif", ".jp2", ".heic", ".avif", ".jxl", ".pdf", ".svg"})

READABLE = ", ".join(entry.title for entry in _TABLE)
"""The formats that the package reads, for messages."""

DEFAULT_QUALITY = 95
"""JPEG/WebP quality in 1..100."""


def is_image(path: Path) -> bool:
    """Return whether a file name is that of an image the package reads."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def output_format(path: Path) -> ImageFormat | None:
    """Return the output format that a file name asks for; None if its suffix is not that of an image.

    Raises:
        InputError: the suffix is that of an image format that the package does not write.
    """
    suffix = path.suffix.lower()
    found = SUFFIXES.get(suffix)
    if suffix in _OTHER_SUFFIXES or (found is not None and not found.written):
        raise InputError(f"{path}: cannot write {suffix[1:]}; use one of {', '.join(OUTPUT_FORMATS)}")
    return found


def format_of(path: Path) -> ImageFormat:
    """Return the format of an image file by its first bytes, whatever its name.

    Raises:
        InputError: the file is missing, a folder, unreadable, empty, or of another format.
    """
    start = read_start(path)
    for entry in _TABLE:
        if re.match(entry.signature, start, re.DOTALL):
            return entry
    raise InputError(f"{path}: not an image that can be read ({READABLE})")


def read_start(path: Path) -> bytes:
    """Return the first bytes of a file.

    Raises:
        InputError: the file is missing, a folder, unreadable or empty.
    """
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder, not an image' if path.is_dir() else 'no such file'}")
    try:
        with path.open("rb") as file:
            start = file.read(_SIGNATURE_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not start:
        raise InputError(f"{path}: the file is empty (0 bytes); copy it again")
    return start


def damaged(path: Path, error: object) -> InputError:
    """Return the error for an image file that a decoder fails on, with the end of the decoder's message."""
    detail = " ".join(str(error).split())[-160:]
    return InputError(f"{path}: the image is corrupt or truncated ({detail}); copy it again")
