"""A mark in the metadata of upscaled images, by which they are recognised whatever their name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

import pyvips

from cabm.imaging.formats import SIGNATURE_BYTES, known_format

_MARK = (
    b'<rdf:Description xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" rdf:about=""'
    b' xmlns:cabm="urn:cabm:1.0" cabm:result="%dx%d"/>'
)
_FOUND = re.compile(rb'<rdf:Description [^>]*cabm:result="(\d+)x(\d+)"/>')
_PACKET = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b"</rdf:RDF></x:xmpmeta>"
)
_END = b"</rdf:RDF>"


def marked(xmp: bytes | None, width: int, height: int) -> bytes:
    """Return an XMP packet with the mark of a result of this size.

    The size tells a result from an edited copy of it.

    Args:
        xmp: packet of the original, whose mark is replaced; None: a new packet. A packet that is not UTF-8
            is returned as it is.
        width, height: of the result, in pixels.
    """
    before, end, after = _FOUND.sub(b"", xmp or _PACKET).rpartition(_END)
    if not end:
        return xmp or _PACKET
    return before + _MARK % (width, height) + end + after


def is_result(path: Path) -> bool:
    """Return whether a file is an unedited result of an upscaling job; False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return is_marked(file)
    except OSError:  # the survey reports it
        return False


def is_marked(file: BinaryIO) -> bool:
    """Return whether an open image file is an unedited result. Only its header is read."""
    if known_format(file.read(SIGNATURE_BYTES)) is None:  # no other decoder of libvips may see the file
        return False
    source = pyvips.SourceCustom()
    source.on_read(file.read)
    source.on_seek(file.seek)
    file.seek(0)
    try:
        image = pyvips.Image.new_from_source(source, "")
        found = _FOUND.search(image.get("xmp-data")) if image.get_typeof("xmp-data") else None
    except pyvips.Error:
        return False
    return found is not None and (image.width, image.height) == (int(found[1]), int(found[2]))


def results_left_out(number: int) -> str:
    """Describe results of earlier runs that are not taken for photographs; empty if there are none."""
    results = f"{number} result{'' if number == 1 else 's'}"
    return f"left out {results} of earlier runs, by the mark in the metadata" if number else ""
