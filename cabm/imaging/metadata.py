"""What image files store besides pixels, and how it changes when an image is upscaled."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass, replace
from typing import Any

from cabm.imaging.png_text import Text
from cabm.imaging.tiff_tags import (
    EXIF_IFD,
    GPS_IFD,
    LONG,
    Directory,
    Entry,
    TagReader,
    entry,
    exif_block,
    selected,
)

_PREFIX = b"Exif\0\0"
_ORIENTATION, _GEO_KEYS, _POINT_KEY, _PIXEL_IS_POINT = 274, 34735, 1025, 2
_PIXEL_SCALE, _TIE_POINTS, _TRANSFORMATION, _DOUBLE, _SHORT = 33550, 33922, 34264, 12, 3
_GEO_TAGS = (_PIXEL_SCALE, _TIE_POINTS, _TRANSFORMATION, _GEO_KEYS, 34736, 34737, 42112, 42113)
# Description, make, model, software, date, artist, host, ratings, Windows' titles, copyright (EXIF 2.32)
_DESCRIPTIVE_TAGS = (270, 271, 272, 305, 306, 315, 316, 18246, 18249, *range(40091, 40096), 33432)
_EXIF_WIDTH, _EXIF_HEIGHT, _UNDEFINED = 0xA002, 0xA003, 7
_IPTC_TAGS = (33723, 34377)  # IPTC, and Photoshop's resources
_NO_DENSITY = 1.0  # pixels per mm that libvips reports if the file states none
_PHOTOSHOP, _IPTC_RESOURCE = b"Photoshop 3.0\0", 0x0404

# What libvips and `cabm.imaging.writer` store in each format.
_HOLDS = {
    "png": {"icc", "exif", "xmp", "text"},
    "jpeg": {"icc", "exif", "xmp", "iptc"},
    "webp": {"icc", "exif", "xmp"},
    "tiff": {"icc", "exif", "xmp", "iptc", "geo"},
    "avif": {"icc", "exif", "xmp"},
    "jxl": {"icc", "exif", "xmp"},
}
_TITLES = {
    "icc": "colour profile",
    "exif": "EXIF",
    "xmp": "XMP",
    "iptc": "IPTC",
    "text": "PNG text",
    "geo": "GeoTIFF tags",
}


@dataclass(frozen=True)
class Metadata:
    """What an image file stores besides its pixels.

    Attributes:
        icc: colour profile.
        exif: EXIF block, upright and without its thumbnail.
        density: pixels per millimetre in x and y; None if the file states none.
        xmp: XMP packet.
        iptc: IPTC records, without a container.
        text: names and values of PNG text.
        geo: GeoTIFF tags.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    density: tuple[float, float] | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    text: Text = ()
    geo: Directory | None = None

    def lost_in(self, file_format: str) -> tuple[str, ...]:
        """Return what a format cannot store, in words."""
        kept = _HOLDS[file_format]
        return tuple(title for name, title in _TITLES.items() if getattr(self, name) and name not in kept)

    def scaled(self, x: float, y: float) -> Metadata:
        """Return the metadata of the image resized by factors: GeoTIFF pixels become smaller or larger."""
        return replace(self, geo=self.geo and _scaled_geo(self.geo, (x, y)))


def metadata_of(image: Any, page: Directory | None, text: Text = ()) -> tuple[Metadata, tuple[str, ...]]:
    """Return the metadata of an upright libvips image, and notes about what was left out.

    Args:
        image: before its colours are converted.
        page: the tags of a TIFF page; None for other formats.
        text: of a PNG file.
    """

    def get(name: str) -> Any:
        return image.get(name) if image.get_typeof(name) else None

    notes: tuple[str, ...] = ()
    exif = get("exif-data") if page is None else exif_of_tiff(page)
    if exif is not None:
        exif = upright_exif(exif)
        notes += () if exif else ("its EXIF is damaged and left out",)
    geo = None if page is None else selected(page, _GEO_TAGS)
    if geo and page is not None and _ORIENTATION in page and page[_ORIENTATION].numbers != (1,):
        geo, notes = None, (*notes, "GeoTIFF tags of a turned picture are left out")
    xmp, iptc = get("xmp-data"), get("iptc-data")
    if page is not None:
        iptc = next((page[tag].data for tag in _IPTC_TAGS if tag in page), None)
    found = Metadata(
        icc=get("icc-profile-data"),
        exif=exif,
        density=(image.xres, image.yres) if abs(image.xres - _NO_DENSITY) > 1e-6 else None,
        xmp=xmp and upright_xmp(xmp),
        iptc=iptc and iptc_records(iptc),
        text=text,
        geo=geo or None,
    )
    return found, notes


def upright_exif(block: bytes) -> bytes | None:
    """Return an EXIF block with orientation 1 and no thumbnail; None if it is damaged.

    Maker notes stay at their place, because some point into the block.
    """
    data = bytearray(block.removeprefix(_PREFIX))
    try:
        reader = TagReader(io.BytesIO(data))
        count = struct.unpack_from(f"{reader.order}H", data, reader.first)[0]
        for start in range(reader.first + 2, reader.first + 2 + 12 * count, 12):
            if struct.unpack_from(f"{reader.order}H", data, start)[0] == _ORIENTATION:
                struct.pack_into(f"{reader.order}HHIHH", data, start, _ORIENTATION, _SHORT, 1, 1, 0)
        struct.pack_into(f"{reader.order}I", data, reader.first + 2 + 12 * count, 0)
    except (ValueError, struct.error):
        return None
    return _PREFIX + bytes(data)


def exif_of_tiff(page: Directory) -> bytes | None:
    """Return the EXIF block for the tags of a TIFF page; None if it has no such tags."""
    found = selected(page, (*_DESCRIPTIVE_TAGS, EXIF_IFD, GPS_IFD))
    return exif_block(found) if found else None


def tiff_tags_of_exif(block: bytes, width: int, height: int) -> Directory:
    """Return the tags that store an EXIF block in a TIFF page of that size."""
    try:
        reader = TagReader(io.BytesIO(block.removeprefix(_PREFIX)))
        directory, _ = reader.directory(reader.first)
    except ValueError:
        return {}
    found = selected(directory, (*_DESCRIPTIVE_TAGS, EXIF_IFD, GPS_IFD))
    if EXIF_IFD in found and found[EXIF_IFD].nested:
        sizes = {_EXIF_WIDTH: entry(LONG, width), _EXIF_HEIGHT: entry(LONG, height)}
        found[EXIF_IFD] = replace(found[EXIF_IFD], nested=found[EXIF_IFD].nested | sizes)
    return {tag: value for tag, value in found.items() if value.nested != {}}


def tiff_tags_of_iptc(records: bytes) -> Directory:
    """Return the tag that stores IPTC records in a TIFF page."""
    return {_IPTC_TAGS[0]: Entry(_UNDEFINED, records)}


def upright_xmp(packet: bytes) -> bytes:
    """Return an XMP packet with orientation 1 and without thumbnails."""
    packet = re.sub(rb"<(xmp:Thumbnails)\b.*?</\1>", b"", packet, flags=re.DOTALL)
    packet = re.sub(rb"(tiff:Orientation=[\"'])[2-8]", rb"\g<1>1", packet)
    return re.sub(rb"(<tiff:Orientation>)[2-8]", rb"\g<1>1", packet)


def iptc_records(block: bytes) -> bytes | None:
    """Return the IPTC records of a block from a JPEG or TIFF file; None if it holds none."""
    if not block.startswith((_PHOTOSHOP, b"8BIM")):
        return block if block[:1] == b"\x1c" else None
    data = block.removeprefix(_PHOTOSHOP)
    at = 0
    while data[at : at + 4] == b"8BIM" and at + 12 <= len(data):
        kind, name_length = struct.unpack_from(">HB", data, at + 4)
        at += 6 + name_length + 1 + (name_length + 1) % 2
        if at + 4 > len(data):
            return None
        (size,) = struct.unpack_from(">I", data, at)
        if kind == _IPTC_RESOURCE:
            return data[at + 4 : at + 4 + size] or None
        at += 4 + size + size % 2
    return None


def photoshop_block(iptc: bytes) -> bytes:
    """Return IPTC records in the container that JPEG files use."""
    head = struct.pack(">4sHHI", b"8BIM", _IPTC_RESOURCE, 0, len(iptc))
    return _PHOTOSHOP + head + iptc + bytes(len(iptc) % 2)


def _scaled_geo(geo: Directory, scales: tuple[float, float]) -> Directory:
    """Scale pixels and tie points in x and y (OGC GeoTIFF 1.1, sections 7.1 and 7.4).

    Where coordinates mean centres of pixels, those of an input pixel lie between upscaled pixels.
    """
    keys = geo[_GEO_KEYS].numbers if _GEO_KEYS in geo else ()
    is_point = any(
        keys[at] == _POINT_KEY and keys[at + 3] == _PIXEL_IS_POINT for at in range(4, len(keys) - 3, 4)
    )
    shifts = [(scale - 1) / 2 if is_point else 0.0 for scale in scales]
    new: dict[int, Entry] = {}
    if _PIXEL_SCALE in geo:
        x, y, *rest = geo[_PIXEL_SCALE].numbers
        new[_PIXEL_SCALE] = entry(_DOUBLE, x / scales[0], y / scales[1], *rest)
    if _TIE_POINTS in geo:
        points = list(geo[_TIE_POINTS].numbers)
        for at in range(0, len(points) - 5, 6):
            for axis in (0, 1):
                points[at + axis] = points[at + axis] * scales[axis] + shifts[axis]
        new[_TIE_POINTS] = entry(_DOUBLE, *points)
    if _TRANSFORMATION in geo:
        matrix = list(geo[_TRANSFORMATION].numbers)
        for row in range(0, len(matrix) - 3, 4):
            for axis in (0, 1):
                matrix[row + axis] /= scales[axis]
                if row < 12:
                    matrix[row + 3] -= shifts[axis] * matrix[row + axis]
        new[_TRANSFORMATION] = entry(_DOUBLE, *matrix)
    return geo | new
