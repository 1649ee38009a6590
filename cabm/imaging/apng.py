"""Animations in PNG files (PNG, third edition, 11.3.6)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path
from typing import BinaryIO

from cabm.files import atomic_write
from cabm.imaging.png_chunks import SIGNATURE, all_chunks, chunk, png_chunks
from cabm.imaging.writer import Animation

_LONGEST_MS = 65535
_KEEP, _REPLACE = 0, 0  # what happens to a frame after it is shown, and to the pixels below it


def read_apng(path: Path) -> Animation:
    """Return the durations of a PNG animation, and how often it is shown.

    No durations: it is no animation. Fractions of a millisecond are rounded so that the sum is right.

    Raises:
        ValueError: frames are missing.
    """
    seconds, declared, loop = [Fraction(0)], 0, 0
    for kind, data in png_chunks(path, (b"acTL", b"fcTL")):
        if kind == b"acTL" and len(data) == 8:
            declared, loop = struct.unpack(">II", data)
        if kind == b"fcTL" and len(data) == 26:
            count, per_second = struct.unpack_from(">HH", data, 20)
            seconds.append(Fraction(count, per_second or 100))
    if len(seconds) - 1 < declared:
        raise ValueError(f"{len(seconds) - 1} of {declared} frames")
    ends = [round(1000 * end) for end in accumulate(seconds)]
    return Animation(tuple(end - start for start, end in pairwise(ends)), loop)


def join_frames(frames: Iterable[Path], path: Path, animation: Animation) -> None:
    """Join PNG files of one size and kind of pixels into an animation.

    Each is read when it is its turn, so it may be made, and removed after it, by the iterable. The
    animation has the metadata of the first.
    """
    with atomic_write(path) as temporary, temporary.open("wb") as joined:
        joined.write(SIGNATURE)
        sequence = 0
        for number, frame in enumerate(frames):
            sequence = _append(joined, frame, number, sequence, animation)
        joined.write(chunk(b"IEND", b""))


def _append(joined: BinaryIO, frame: Path, number: int, sequence: int, animation: Animation) -> int:
    """Append a frame; return the next sequence number."""
    started = False
    for kind, data in all_chunks(frame):
        if kind == b"IHDR":
            size = data[:8]
        if kind == b"IDAT" and not started:
            started = True
            if not number:
                joined.write(chunk(b"acTL", struct.pack(">II", len(animation.durations), animation.loop)))
            control = size + bytes(8) + _delay(animation.durations[number]) + bytes((_KEEP, _REPLACE))
            joined.write(chunk(b"fcTL", struct.pack(">I", sequence) + control))
            sequence += 1
        if number and kind == b"IDAT":
            joined.write(chunk(b"fdAT", struct.pack(">I", sequence) + data))
            sequence += 1
        elif not number and kind != b"IEND":
            joined.write(chunk(kind, data))
    return sequence


def _delay(milliseconds: int) -> bytes:
    """Return a duration as a fraction of a second."""
    if milliseconds <= _LONGEST_MS:
        return struct.pack(">HH", milliseconds, 1000)
    return struct.pack(">HH", min(round(milliseconds / 1000), _LONGEST_MS), 1)
