"""What the first bytes of JPEG and PNG files say beyond what libvips reports."""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from cabm.errors import InputError
from cabm.imaging.png_chunks import png_chunks

_END_OF_IMAGE = b"\xff\xd9"
_MARKER = re.compile(
    rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL
)  # in pixel data only restarts, D0 to D7, are legal
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_DECODED_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_START_OF_SCAN, _APP2 = 0xDA, 0xE2
_HEADER_CHUNKS = (b"IHDR", b"acTL", b"cICP", b"gAMA", b"cHRM")
_CICP_SRGB = (1, 13, 0, 1)  # primaries, transfer, matrix, range (ITU-T H.273)
_SRGB_GAMMA, _SRGB_PRIMARIES = 45455, (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


@dataclass(frozen=True)
class JpegHeader:
    """Facts about a JPEG file.

    Attributes:
        has_end: whether its end marker is there.
        num_pictures: 1, or 2 where it holds others (Multi-Picture Format).
    """

    has_end: bool
    num_pictures: int


def read_jpeg_header(path: Path) -> JpegHeader:
    """Read the markers of a JPEG file.

    Raises:
        InputError: a kind of JPEG that cannot be decoded.
    """
    others = False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 2
        while at + 4 <= len(data) and data[at] == 0xFF:
            marker = data[at + 1]
            if marker == 0xFF:
                at += 1
                continue
            (length,) = struct.unpack_from(">H", data, at + 2)
            if marker in _FRAMES:
                _check_frame(path, marker, data[at + 4 : at + 5])
            others |= marker == _APP2 and data[at + 4 : at + 8] == b"MPF\0"
            at += 2 + length
            if marker == _START_OF_SCAN:
                break
        return JpegHeader(_has_end(data, at), 2 if others else 1)


def _check_frame(path: Path, marker: int, precision: bytes) -> None:
    if marker not in _DECODED_FRAMES:
        raise InputError(
            f"{path}: a lossless or hierarchical JPEG (SOF{marker - 0xC0}) is not"
            " supported; save it as PNG or TIFF"
        )
    if precision and precision[0] != 8:
        raise InputError(
            f"{path}: a JPEG with {precision[0]} bits per channel is not supported (8 are);"
            " save it as PNG or TIFF"
        )


def _has_end(data: mmap.mmap, at: int) -> bool:
    if data[-2:] == _END_OF_IMAGE:
        return True
    found = _MARKER.search(data, at)
    while found is not None:
        if found.group() == _END_OF_IMAGE:
            return True
        start = found.start() + 2
        length = struct.unpack_from(">H", data, start)[0] if start + 2 <= len(data) else 0
        found = _MARKER.search(data, start + length)
    return False


@dataclass(frozen=True)
class PngHeader:
    """Facts about a PNG file.

    Attributes:
        width, height: in pixels.
        num_frames: of an animation; otherwise 1.
        colours: the chunks that describe colours differently from sRGB and from a profile.
    """

    width: int
    height: int
    num_frames: int
    colours: tuple[str, ...]


def read_png_header(path: Path) -> PngHeader | None:
    """Read the chunks of a PNG file before its pixels; None if they are damaged."""
    found: dict[bytes, bytes] = {}
    for kind, data in png_chunks(path, _HEADER_CHUNKS):
        if kind in (b"IDAT", b"IEND"):
            break
        found[kind] = data
    if len(found.get(b"IHDR", b"")) < 8:
        return None
    width, height = struct.unpack_from(">II", found[b"IHDR"])
    animation = found.get(b"acTL", b"")
    frames = struct.unpack_from(">I", animation)[0] if len(animation) >= 4 else 1
    return PngHeader(width, height, frames, _other_colours(found))


def _other_colours(chunks: dict[bytes, bytes]) -> tuple[str, ...]:
    """Return the chunks that a reader of colours would have to honour (PNG, third edition, 4.3)."""
    if b"cICP" in chunks:
        return () if tuple(chunks[b"cICP"]) == _CICP_SRGB else ("cICP",)
    if b"iCCP" in chunks or b"sRGB" in chunks:
        return ()
    found = ()
    gamma, primaries = chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b"")
    if len(gamma) == 4 and abs(struct.unpack(">I", gamma)[0] - _SRGB_GAMMA) > 500:
        found += ("gAMA",)
    if len(primaries) == 32:
        differences = zip(struct.unpack(">8I", primaries), _SRGB_PRIMARIES, strict=True)
        if max(abs(value - usual) for value, usual in differences) > 200:
            found += ("cHRM",)
    return found
