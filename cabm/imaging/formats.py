"""The image file formats that the package reads and writes, in one table."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten

from cabm.errors import InputError


@dataclass(frozen=True)
class ImageFormat:
    """One file format.

    Attributes:
        title: name in messages.
        suffixes: file name suffixes in lower case; new files get the first.
        signature: regular expression for the first bytes of a file.
        max_bits: largest number of bits per channel that is written.
        max_side: longest side in pixels; None if the format sets no practical limit.
        alpha: whether the format stores transparency.
        lossy: whether the format is compressed with loss, at a quality of 1..100.
        written: whether `cabm.imaging.writer` writes the format.
        whole: whether files are decoded whole instead of row by row.
        operation: name of libvips' loader and saver without ``load`` or ``save``; empty: Pillow reads it.
        module: which Pillow needs for that, besides its own.
    """

    title: str
    suffixes: tuple[str, ...]
    signature: bytes
    max_bits: int = 16
    max_side: int | None = None
    alpha: bool = True
    lossy: bool = False
    written: bool = True
    whole: bool = False
    operation: str = ""
    module: str = ""

    @property
    def name(self) -> str:
        """Name in options: ``png``, ``tiff``, ..."""
        return "jxl" if self.title == "JPEG XL" else self.title.lower()

    @property
    def suffix(self) -> str:
        """Suffix of new files."""
        return self.suffixes[0]


_TABLE = (
    ImageFormat("PNG", (".png", ".apng"), rb"\x89PNG\r\n\x1a\n", operation="png"),
    ImageFormat("TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", operation="tiff"),
    ImageFormat(
        "WebP",
        (".webp",),
        rb"RIFF.{4}WEBP",
        max_bits=8,
        max_side=16383,
        lossy=True,
        whole=True,
        operation="webp",
    ),
    ImageFormat(
        "JPEG",
        (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"),
        rb"\xff\xd8\xff",
        max_bits=8,
        max_side=65500,
        alpha=False,
        lossy=True,
        operation="jpeg",
    ),
    ImageFormat(
        "AVIF",
        (".avif",),
        rb".{4}ftyp(.{4}){0,12}avi[fs]",
        max_bits=12,
        max_side=16384,
        lossy=True,
        whole=True,
        operation="heif",
    ),
    ImageFormat(
        "JPEG XL",
        (".jxl",),
        rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
        lossy=True,
        whole=True,
        operation="jxl",
    ),
    ImageFormat(
        "HEIC",
        (".heic", ".heif", ".hif"),
        rb".{4}ftyp(hei|hev|mif1|msf1)",
        written=False,
        whole=True,
        module="pillow_heif",  # the bundled libvips has no HEVC decoder
    ),
    ImageFormat("GIF", (".gif",), rb"GIF8[79]a", written=False, whole=True, operation="gif"),
    ImageFormat("BMP", (".bmp", ".dib"), rb"BM", max_bits=8, written=False, whole=True),
)
SIGNATURE_BYTES = 64
"""How many bytes of a file tell its format."""

OUTPUT_FORMATS = {entry.name: entry for entry in _TABLE if entry.written}
"""The formats of upscaled images by name."""

SUFFIXES = {suffix: entry for entry in _TABLE for suffix in entry.suffixes}
"""All formats by file name suffix."""

_OTHER_IMAGES = (
    ("jp2", "j2k", "jpx", "ico", "tga", "pcx", "ppm", "pgm", "pbm", "pnm", "pam", "pfm", "exr", "hdr"),
    ("qoi", "dds", "fits", "psd", "psb", "xcf", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf"),
    ("pef", "srw"),
)
OTHER_IMAGES = frozenset(f".{name}" for row in _OTHER_IMAGES for name in row)
"""Suffixes of images that the package does not read, in lower case."""

READABLE = ", ".join(entry.title for entry in _TABLE)
"""The formats that the package reads, for messages."""

DEFAULT_QUALITY = 95
"""JPEG/WebP quality in 1..100."""


def is_image(path: Path) -> bool:
    """Return whether a file name is that of an image that can be read here."""
    found = SUFFIXES.get(path.suffix.lower())
    return found is not None and not path.name.startswith(".") and missing_operation(found, "load") is None


def output_format(path: Path) -> ImageFormat | None:
    """Return the output format that a file name asks for; None if its suffix is not that of an image.

    Raises:
        InputError: the suffix is that of an image format that the package does not write.
    """
    suffix = path.suffix.lower()
    found = SUFFIXES.get(suffix)
    if suffix in (*OTHER_IMAGES, ".pdf", ".svg") or (found is not None and not found.written):
        advice = f"use one of {', '.join(OUTPUT_FORMATS)}"
        if suffix == ".gif":  # its 256 colours would undo much of what the network adds
            advice += "; with --all-frames webp, png (.apng) and tiff hold all frames"
        raise InputError(f"{path}: cannot write {suffix[1:]}; {advice}")
    return found


def format_of(path: Path) -> ImageFormat:
    """Return the format of an image file by its first bytes, whatever its name.

    Raises:
        InputError: the file is missing, a folder, unreadable, empty, or of another format.
    """
    found = known_format(read_start(path))
    if found is None:
        raise InputError(f"{path}: not an image that can be read ({READABLE})")
    return found


def known_format(start: bytes) -> ImageFormat | None:
    """Return the format that the first `SIGNATURE_BYTES` of a file tell; None: no image."""
    return next((entry for entry in _TABLE if re.match(entry.signature, start, re.DOTALL)), None)


@cache
def missing_operation(entry: ImageFormat, action: str) -> str | None:
    """Return why a format cannot be read or written here; None if it can.

    Args:
        entry: the format.
        action: ``load`` or ``save``.
    """
    if entry.module and find_spec(entry.module) is None:
        return f'{entry.title} needs {entry.module.replace("_", "-")}: pip install "cabm[{entry.name}]"'
    if not entry.operation:
        return None
    import pyvips

    if pyvips.type_find("VipsOperation", f"{entry.operation}{action}"):
        return None
    version = ".".join(str(pyvips.version(part)) for part in range(3))
    return f"libvips {version} was built without {entry.title}"


def describe_formats() -> str:
    """Return what is read and written here, one format a line."""
    lines = []
    for entry in _TABLE:
        reason = missing_operation(entry, "load")
        can_write = entry.written and missing_operation(entry, "save") is None
        words = [reason] if reason else ["read and written" if can_write else "read"]
        if can_write:
            words.append(f"up to {entry.max_bits} bits" + ("" if entry.alpha else ", no transparency"))
        lines.append(f"{entry.title:8} {' '.join(entry.suffixes):28} {', '.join(words)}")
    return "\n".join(lines)


def read_start(path: Path) -> bytes:
    """Return the first bytes of a file.

    Raises:
        InputError: the file is missing, a folder, unreadable or empty.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
            raise InputError(f"{path}: is {kind}, not an image file")
        with path.open("rb") as file:
            start = file.read(SIGNATURE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not start:
        raise InputError(f"{path}: the file is empty (0 bytes); copy it again")
    return start


def damaged(path: Path, error: object) -> InputError:
    """Return the error for an image file that a decoder fails on, with the decoder's reason."""
    detail = reason_of(error)
    if re.search(r"not (supported|implemented|configured)|[Uu]nsupported|[Uu]nimplemented", detail):
        return InputError(f"{path}: this kind of file is not supported ({detail}); save it as PNG or TIFF")
    return InputError(f"{path}: the image is corrupt or truncated ({detail}); copy it again")


def reason_of(error: object, limit: int = 160) -> str:
    """Return a decoder's message in one line: each part once, and cut between words."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    whole = "; ".join(dict.fromkeys(line for line in lines if line and not line.startswith("unable to ")))
    return shorten(whole or " ".join(lines) or type(error).__name__, limit, placeholder=" ...")
