"""The chunks that PNG files consist of (PNG, third edition, 5.3)."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Container, Iterator
from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_MOST_CHUNKS = 4_000_000  # 32 GB, as most encoders write them; reading a crafted file takes seconds


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)))


def png_chunks(path: Path, wanted: Container[bytes], most_bytes: int = 64) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and data of each chunk of a PNG file; no data of unwanted and of larger chunks."""
    with path.open("rb") as file:
        file.seek(len(SIGNATURE))
        for _ in range(_MOST_CHUNKS):
            head = file.read(8)
            if len(head) < 8:
                return
            length, kind = struct.unpack(">I4s", head)
            data = file.read(length) if kind in wanted and length <= most_bytes else b""
            file.seek(length - len(data) + 4, os.SEEK_CUR)
            yield kind, data


def all_chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and data of every chunk of a whole PNG file."""
    with path.open("rb") as file:
        file.seek(len(SIGNATURE))
        while head := file.read(8):
            length, kind = struct.unpack(">I4s", head)
            yield kind, file.read(length)
            file.seek(4, os.SEEK_CUR)
