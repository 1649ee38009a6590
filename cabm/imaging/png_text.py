"""Text in PNG files (PNG, third edition, 11.3.3), which libvips reads and writes without its encoding."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from cabm.imaging.png_chunks import chunk, png_chunks

Text = tuple[tuple[str, str], ...]
"""Names and values."""

_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
_MOST_BYTES = 1 << 20
_NO_TEXT = ("Raw profile type", "XML:com.adobe.xmp")
_END = chunk(b"IEND", b"")


def read_png_text(path: Path) -> Text:
    """Return the text of a PNG file; not XMP, or the raw profiles that old programs stored as text."""
    chunks = png_chunks(path, _CHUNKS, _MOST_BYTES)
    found = [_decoded(kind, data) for kind, data in chunks if kind in _CHUNKS]
    return tuple(text for text in found if text is not None and not text[0].startswith(_NO_TEXT))


def append_png_text(path: Path, text: Text) -> None:
    """Add text at the end of a PNG file."""
    with path.open("r+b") as file:
        file.seek(-len(_END), os.SEEK_END)
        assert file.read() == _END, "not the end of a PNG file"
        file.seek(-len(_END), os.SEEK_END)
        for name, value in text:
            file.write(_text_chunk(name, value))
        file.write(_END)


def _decoded(kind: bytes, data: bytes) -> tuple[str, str] | None:
    """Return a name and a value; None if they are damaged."""
    name, _, rest = data.partition(b"\0")
    try:
        if kind == b"tEXt":
            value = rest.decode("latin-1")
        elif kind == b"zTXt":
            value = _inflated(rest[1:]).decode("latin-1")
        else:
            compressed, body = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[2]
            value = (_inflated(body) if compressed else body).decode()
    except (zlib.error, ValueError, IndexError):
        return None
    return name.decode("latin-1"), value


def _inflated(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, _MOST_BYTES)


def _text_chunk(name: str, value: str) -> bytes:
    keyword = name.encode("latin-1", "replace")[:79] + b"\0"
    try:
        kind, data = b"tEXt", keyword + value.encode("latin-1")
    except UnicodeEncodeError:
        kind, data = b"iTXt", keyword + b"\0\0\0\0" + value.encode()
    return chunk(kind, data)
