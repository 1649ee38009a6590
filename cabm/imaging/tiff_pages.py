"""Which page of a TIFF file is the picture, and whether its pixels can be decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cabm.errors import InputError
from cabm.imaging.tiff_tags import SUB_IFDS, Directory, TagReader

# TIFF 6.0 unless noted
_SUBFILE, _OLD_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 255, 258, 259, 262
_SAMPLES, _PLANAR, _INK_SET, _TILE_WIDTH, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 277, 284, 332, 322, 338, 339
_DNG_VERSION = 50706
_REDUCED, _MASK, _OLD_REDUCED = 1, 4, 2
_WHITE_IS_ZERO, _RGB, _SEPARATED, _YCBCR, _CIELAB = 0, 2, 5, 6, 8
_COLOURS = {0: 1, 1: 1, _RGB: 3, 3: 1, 4: 1, _SEPARATED: 4, _YCBCR: 3, _CIELAB: 3}
_PALETTE = 3
_RAW = {32803: "colour filter array", 34892: "linear raw"}  # DNG 1.4
_OLD_JPEG = 6
_DECODED = {1, 2, 3, 4, 5, _OLD_JPEG, 7, 8, 32773, 32946, 50001}
_COMPRESSIONS = {
    34925: "LZMA",
    50000: "Zstandard",
    34712: "JPEG 2000",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    50002: "JPEG XL",
    52546: "JPEG XL",
    34887: "LERC",
    34676: "SGI LogLuv",
}
_FORMATS = {2: "signed integers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}
_ASSOCIATED, _UNASSOCIATED = 1, 2


@dataclass(frozen=True)
class TiffPage:
    """The page of a TIFF file that holds the picture.

    Attributes:
        number: from 0.
        tags: its directory.
        num_pictures: of the file, without thumbnails and masks.
        colours: channels without alpha in the file.
        alpha: whether a channel of alpha follows; libvips divides premultiplied colours by it.
        lab8: whether it is 8-bit CIELab, which libvips does not read.
        notes: which other pages were skipped.
    """

    number: int
    tags: Directory
    num_pictures: int
    colours: int
    alpha: bool
    lab8: bool
    notes: tuple[str, ...]


def find_picture(path: Path, number: int | None = None) -> TiffPage:
    """Find the picture in a TIFF file.

    Args:
        path: the file.
        number: which of the full pictures, from 0; None: the first.

    Raises:
        InputError: the file is not supported, and why.
        ValueError: its directories are damaged.
    """
    with path.open("rb") as file:
        start = file.read(10)
        file.seek(0)
        reader = TagReader(file)
        pages = reader.pages()
        _refuse_raw(path, start, pages, reader)
    if not pages:
        raise ValueError("no pages")
    full = [at for at, page in enumerate(pages) if not _is_reduced(page)]
    if not full:
        raise InputError(f"{path}: a TIFF that holds only thumbnails and masks, no picture")
    notes: tuple[str, ...] = ()
    if full[0] and number is None:
        notes += (
            f"skipped {full[0]} reduced {'image' if full[0] == 1 else 'images'} (thumbnails or masks)",
        )
    chosen = full[number or 0]
    page = pages[chosen]
    _check_pixels(path, page)
    photometric, samples = _one(page, _PHOTOMETRIC, _RGB), _one(page, _SAMPLES, 1)
    alpha = _has_alpha(path, page, samples - _COLOURS[photometric])
    lab8 = photometric == _CIELAB and _one(page, _BITS, 1) == 8
    return TiffPage(chosen, page, len(full), _COLOURS[photometric], alpha, lab8, notes)


def num_pictures(path: Path) -> int:
    """Return the number of pages that are neither thumbnails nor masks."""
    with path.open("rb") as file:
        return sum(not _is_reduced(page) for page in TagReader(file).pages())


def _refuse_raw(path: Path, start: bytes, pages: list[Directory], reader: TagReader) -> None:
    subs = [int(offset) for page in pages if SUB_IFDS in page for offset in page[SUB_IFDS].numbers[:16]]
    found = [*pages]
    for offset in subs:
        try:
            found.append(reader.directory(offset)[0])
        except ValueError:
            continue  # no part of the picture
    sensor = any(_one(page, _PHOTOMETRIC, _RGB) in _RAW for page in found)
    if sensor or start[8:10] == b"CR" or any(_DNG_VERSION in page for page in found):
        raise InputError(
            f"{path}: raw data of a camera, not a picture; develop it first and save it as TIFF or PNG"
        )


def _is_reduced(page: Directory) -> bool:
    return bool(_one(page, _SUBFILE, 0) & (_REDUCED | _MASK)) or _one(page, _OLD_SUBFILE, 0) == _OLD_REDUCED


def _check_pixels(path: Path, page: Directory) -> None:
    bits, formats = set(_all(page, _BITS, 1)), set(_all(page, _SAMPLE_FORMAT, 1))
    compression, photometric = _one(page, _COMPRESSION, 1), _one(page, _PHOTOMETRIC, _RGB)
    tiled, samples = _TILE_WIDTH in page, _one(page, _SAMPLES, 1)
    signed = formats & _FORMATS.keys()
    if photometric not in _COLOURS:
        reason = f"colours of kind {photometric} (PhotometricInterpretation)"
    elif signed and photometric != _CIELAB:
        reason = f"pixels of {_FORMATS[min(signed)]}, which have no known range,"
    elif len(bits) > 1 or not bits <= {1, 2, 4, 8, 16}:
        reason = f"{', '.join(map(str, sorted(bits)))} bits per channel"
    elif compression not in _DECODED:
        reason = f"{_COMPRESSIONS.get(compression, f'unknown ({compression})')} compression"
    elif compression == _OLD_JPEG and tiled:
        reason = "old-style JPEG compression in tiles"
    elif tiled and samples > 1 and _one(page, _PLANAR, 1) == 2:
        reason = "tiles with separate planes"
    elif photometric == _SEPARATED and _one(page, _INK_SET, 1) != 1:
        reason = "inks other than CMYK"
    else:
        return
    raise InputError(
        f"{path}: a TIFF with {reason} is not supported; save it with 8 or 16 bits as RGB or gray"
    )


def _has_alpha(path: Path, page: Directory, extra: int) -> bool:
    """Return whether the extra channel is alpha, which only ExtraSamples says."""
    if extra < 0:
        raise ValueError("too few channels")
    if extra == 0:
        return False
    kinds = _all(page, _EXTRA_SAMPLES, 0)
    samples = _one(page, _SAMPLES, 1)
    if extra > 1 or _one(page, _PHOTOMETRIC, _RGB) == _PALETTE:
        raise InputError(
            f"{path}: {samples} channels; save it as gray or RGB, with at most one extra channel, alpha"
        )
    if kinds[0] not in (_ASSOCIATED, _UNASSOCIATED):
        raise InputError(
            f"{path}: {samples} channels, and the last is not marked as alpha (ExtraSamples is {kinds[0]}:"
            " a mask or another band); save it without that channel, or mark it as alpha"
        )
    return True


def _all(page: Directory, tag: int, default: int) -> tuple[int, ...]:
    numbers = page[tag].numbers if tag in page else ()
    return tuple(int(number) for number in numbers) or (default,)


def _one(page: Directory, tag: int, default: int) -> int:
    return _all(page, tag, default)[0]
