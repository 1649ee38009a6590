"""Read and write the directories of tags in TIFF files and EXIF blocks (TIFF 6.0, section 2)."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

Directory = dict[int, "Entry"]
"""Entries by tag."""

# Bytes per value, and bytes that swap together, by type (TIFF 6.0; 16 to 18: BigTIFF)
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_VALUE_BYTES |= {16: 8, 17: 8, 18: 8}
_SWAPPED_BYTES = _VALUE_BYTES | {5: 4, 10: 4}
_CODES = {
    1: "B",
    3: "H",
    4: "I",
    6: "b",
    8: "h",
    9: "i",
    11: "f",
    12: "d",
    13: "I",
    16: "Q",
    17: "q",
    18: "Q",
}
_LARGEST_VALUE = 64 << 20
_MOST_ENTRIES, _MOST_PAGES = 4096, 65536

LONG, _LONG8 = 4, 16
EXIF_IFD, GPS_IFD, INTEROPERABILITY_IFD, SUB_IFDS = 34665, 34853, 40965, 330
_PIXEL_OFFSETS = frozenset({273, 324})  # of strips and of tiles
_NESTED = (EXIF_IFD, GPS_IFD, INTEROPERABILITY_IFD)


@dataclass(frozen=True)
class Entry:
    """The values of a tag.

    Attributes:
        kind: TIFF type, such as 3 for 16-bit integers.
        data: the values in little-endian order.
        nested: the directory that the tag points to, for EXIF and GPS.
    """

    kind: int
    data: bytes
    nested: Directory | None = None

    @property
    def count(self) -> int:
        """Number of values."""
        return len(self.data) // _VALUE_BYTES[self.kind]

    @property
    def numbers(self) -> tuple[float, ...]:
        """The values; empty for text, rationals and undefined bytes."""
        code = _CODES.get(self.kind)
        return struct.unpack(f"<{self.count}{code}", self.data) if code else ()


def entry(kind: int, *numbers: float) -> Entry:
    """Return an entry of numbers."""
    return Entry(kind, struct.pack(f"<{len(numbers)}{_CODES[kind]}", *numbers))


class TagReader:
    """Reads the directories of a TIFF file or of an EXIF block without its prefix.

    Args:
        file: open for reading.

    Raises:
        ValueError: as all methods: the data are not those of a TIFF.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        header = self._at(0, 8)
        if header[:2] not in (b"II", b"MM"):
            raise ValueError("no TIFF header")
        self.order = "<" if header[:2] == b"II" else ">"
        self.big = struct.unpack(f"{self.order}H", header[2:4])[0] == 43
        self.pointer = 8 if self.big else 4  # position of the offset of the first directory
        self.pointer_code = "Q" if self.big else "I"
        # bytes of the number of tags, of a tag, and of an offset
        self._sizes = (8, 20, 8) if self.big else (2, 12, 4)
        size = self._sizes[2]
        self.first = struct.unpack(f"{self.order}{self.pointer_code}", self._at(self.pointer, size))[0]

    def pages(self) -> list[Directory]:
        """Return the directories of all pages."""
        found, seen, offset = [], set(), self.first
        while offset and offset not in seen and len(found) < _MOST_PAGES:
            seen.add(offset)
            directory, offset = self.directory(offset)
            found.append(directory)
        return found

    def last_pointer(self) -> int:
        """Return the position of the offset that follows the last page, which is 0."""
        counted, size, word = self._sizes
        place, offset = self.pointer, self.first
        while offset:
            (count,) = struct.unpack(f"{self.order}{'Q' if self.big else 'H'}", self._at(offset, counted))
            place = offset + counted + count * size
            (offset,) = struct.unpack(f"{self.order}{self.pointer_code}", self._at(place, word))
        return place

    def directory(self, offset: int, *, depth: int = 0) -> tuple[Directory, int]:
        """Return the directory at an offset, and the offset of the next one (0: none)."""
        counted, size, word = self._sizes
        (count,) = struct.unpack(f"{self.order}{'Q' if self.big else 'H'}", self._at(offset, counted))
        if count > _MOST_ENTRIES:
            raise ValueError(f"a directory of {count} tags")
        raw = self._at(offset + counted, count * size + word)
        found: Directory = {}
        for start in range(0, count * size, size):
            tag, kind, number = struct.unpack_from(f"{self.order}HH{self.pointer_code}", raw, start)
            value = self._value(kind, number, raw[start + size - word : start + size])
            if value is not None:
                found[tag] = self._with_nested(tag, value, depth)
        return found, struct.unpack(f"{self.order}{self.pointer_code}", raw[-word:])[0]

    def _with_nested(self, tag: int, value: Entry, depth: int) -> Entry:
        if tag not in _NESTED or depth > 1 or not value.numbers:
            return value
        try:
            nested = self.directory(int(value.numbers[0]), depth=depth + 1)[0]
        except ValueError:  # EXIF may be damaged where pixels are not
            nested = {}
        return Entry(value.kind, value.data, nested)

    def _value(self, kind: int, count: int, field: bytes) -> Entry | None:
        """Return the values of a tag; None if their type is unknown, or they are huge or cut off."""
        if kind not in _VALUE_BYTES:
            return None
        size = count * _VALUE_BYTES[kind]
        if size > len(field):
            if size > _LARGEST_VALUE:
                return None
            try:
                data = self._at(struct.unpack(f"{self.order}{self.pointer_code}", field)[0], size)
            except ValueError:
                return None
        else:
            data = field[:size]
        return Entry(kind, data if self.order == "<" else _swapped(data, kind))

    def _at(self, offset: int, size: int) -> bytes:
        if offset >= 1 << 63:
            raise ValueError("a tag points outside the file")
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError("a tag points outside the file")
        return data


def serialised(directory: Directory, base: int, *, order: str = "<", big: bool = False) -> bytes:
    """Return a directory with its values and nested directories, for the end of a file.

    Args:
        directory: what to write; the value of a tag with a nested directory is ignored.
        base: offset in the file of the first byte that is returned.
        order: ``<`` little-endian, ``>`` big-endian.
        big: as in BigTIFF.

    Returns:
        Bytes that begin with the directory; it links to no other.
    """
    code, size, word = ("Q", 20, 8) if big else ("I", 12, 4)
    head = struct.pack(f"{order}{'Q' if big else 'H'}", len(directory))
    end = base + len(head) + size * len(directory) + word
    fields, rest = [], b""
    for tag, value in sorted(directory.items()):
        kind, data, count = value.kind, value.data, value.count
        if value.nested is not None:
            rest += bytes(-(end + len(rest)) % 8)
            place = end + len(rest)
            rest += serialised(value.nested, place, order=order, big=big)
            kind, count = (16 if big else LONG), 1
            data = struct.pack(f"<{code}", place)
        ordered = data if order == "<" else _swapped(data, kind)
        if len(ordered) > word:
            rest += bytes(-(end + len(rest)) % 8)
            place, rest = end + len(rest), rest + ordered
            ordered = struct.pack(f"{order}{code}", place)
        fields.append(struct.pack(f"{order}HH{code}", tag, kind, count) + ordered.ljust(word, b"\0"))
    return head + b"".join(fields) + bytes(word) + rest


def add_tags(file: BinaryIO, added: Directory) -> None:
    """Add tags to a TIFF file of one page that is open for reading and writing.

    The page gets a new directory at the end of the file. Tags that it has already are kept.
    """
    reader = TagReader(file)
    page, _ = reader.directory(reader.first)
    _link(file, reader, added | page, reader.pointer)


def append_page(file: BinaryIO, page: BinaryIO) -> None:
    """Append the first page of another TIFF file of the same kind, open for reading.

    The other file must hold its pixels in strips or tiles whose offsets are in its directory.
    """
    target, added = TagReader(file), TagReader(page)
    assert (target.order, target.big) == (added.order, added.big)
    directory, _ = added.directory(added.first)
    base = _padded(file)
    page.seek(0)
    shutil.copyfileobj(page, file)
    for tag in _PIXEL_OFFSETS & directory.keys():
        moved = [int(offset) + base for offset in directory[tag].numbers]
        directory[tag] = entry(_LONG8 if target.big else LONG, *moved)
    _link(file, target, directory, target.last_pointer())


def _link(file: BinaryIO, reader: TagReader, directory: Directory, pointer: int) -> None:
    """Write a directory to the end of a file, and its offset to a position."""
    place = _padded(file)
    file.write(serialised(directory, place, order=reader.order, big=reader.big))
    file.seek(pointer)
    file.write(struct.pack(f"{reader.order}{reader.pointer_code}", place))


def _padded(file: BinaryIO) -> int:
    """Pad a file to a multiple of 8 bytes, and return its size."""
    size = file.seek(0, 2)
    file.write(bytes(-size % 8))
    return size + -size % 8


def exif_block(directory: Directory) -> bytes:
    """Return an EXIF block as JPEG files hold it."""
    return b"Exif\0\0II*\0\x08\0\0\0" + serialised(directory, 8)


def selected(directory: Directory, tags: Iterable[int]) -> Directory:
    """Return the entries of some tags."""
    return {tag: directory[tag] for tag in tags if tag in directory}


def _swapped(data: bytes, kind: int) -> bytes:
    size = _SWAPPED_BYTES[kind]
    if size == 1:
        return data
    return b"".join(data[at : at + size][::-1] for at in range(0, len(data), size))
