"""Read image files in blocks of rows, with bounded memory.

libvips decodes PNG, JPEG and TIFF row by row. WebP, interlaced PNG and progressive JPEG are decoded whole,
and so is BMP, by Pillow. Rasters are upright, 8- or 16-bit gray or RGB, with or without alpha. Colours stay
as stored, with their profile as metadata; only colour spaces other than gray and RGB are converted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from cabm.errors import InputError
from cabm.imaging.formats import damaged, format_of
from cabm.imaging.images import open_image
from cabm.imaging.raster import ArrayRaster, Metadata, Raster, array_raster

STREAMED_MAX_PIXELS = 1 << 30
"""Default limit for images that are decoded row by row."""
WHOLE_MAX_PIXELS = 1 << 27
"""Default limit for images that are decoded whole: 400 MB of RGB."""

_UPRIGHT = 1  # EXIF orientation
_NO_DENSITY = 1.0  # pixels per mm that libvips reports if the file states none


@dataclass(frozen=True)
class FileRaster(Raster):
    """An image file that every pass decodes again; made by `open_raster`.

    Attributes:
        path: of the file.
        format: name of its format, see `cabm.imaging.formats`.
    """

    path: Path
    format: str

    def blocks(self, num_rows: int = 64) -> Iterator[np.ndarray]:
        """See `Raster`.

        Raises:
            InputError: the file is corrupt or truncated.
        """
        if self.format == "bmp":
            yield from _decode_bmp(self.path, self.height * self.width).blocks(num_rows)
            return
        with _decoding(self.path):
            image, _, _ = _standard(self.path, _upright(self.path, self.format))
            region = pyvips.Region.new(image)
            for top in range(0, self.height, num_rows):
                rows = min(num_rows, self.height - top)
                block = np.frombuffer(region.fetch(0, top, self.width, rows), self.dtype)
                yield block.reshape(rows, self.width, self.channels)


def open_raster(path: str | Path, max_pixels: int | None = None) -> FileRaster:
    """Open a PNG, TIFF, WebP, JPEG or BMP file.

    Accepts gray, palette and RGB images with 1 to 16 bits, with or without alpha. CMYK and Lab are
    converted to sRGB. The EXIF orientation is applied. Only the first page or frame is read.

    Args:
        path: the file.
        max_pixels: largest width times height; None: `STREAMED_MAX_PIXELS`, or `WHOLE_MAX_PIXELS` for files
            that cannot be decoded row by row.

    Raises:
        InputError: the file is missing, unreadable, too large or not an image, or its pixels have no known
            range.
    """
    path = Path(path)
    kind = format_of(path).name
    if kind == "bmp":
        bmp = _decode_bmp(path, max_pixels or WHOLE_MAX_PIXELS)
        return FileRaster(bmp.height, bmp.width, bmp.channels, bmp.dtype, bmp.metadata, (), path, kind)
    with _decoding(path):
        image = _upright(path, kind)
        whole = kind == "webp" or bool(_field(image, "interlaced") or _field(image, "jpeg-multiscan"))
        _check_size(path, image.width, image.height, max_pixels, whole)
        metadata, pages = _metadata(image), _field(image, "n-pages") or 1
        image, keeps_profile, notes = _standard(path, image)
        dtype = np.dtype(np.uint8 if image.format == "uchar" else np.uint16)
        size = (image.height, image.width, image.bands)
    if not keeps_profile:
        metadata = replace(metadata, icc=None)
    if pages > 1:
        notes = (f"first of {pages} pages", *notes)
    return FileRaster(*size, dtype, metadata, notes, path, kind)


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn errors of libvips into one line that names the file."""
    try:
        yield
    except pyvips.Error as error:
        raise damaged(path, error) from None


def _load(path: Path, kind: str, access: str) -> Any:
    pyvips.cache_set_max(0)  # the cache would return old contents of a changed file, and keep it in memory
    options: dict[str, Any] = {"access": access, "fail_on": "error"}
    if kind in ("png", "jpeg"):
        options["unlimited"] = True  # the limit of this module is checked instead
    return pyvips.Operation.call(f"{kind}load", os.fsencode(path), **options)


def _upright(path: Path, kind: str) -> Any:
    """Open the image with its orientation applied."""
    image = _load(path, kind, "sequential")
    if (_field(image, "orientation") or _UPRIGHT) == _UPRIGHT:
        return image
    # Turned rows need all columns. libvips decodes once, into memory or, above 100 MB, a temporary file.
    return _load(path, kind, "random").autorot()


def _field(image: Any, name: str) -> Any:
    return image.get(name) if image.get_typeof(name) else None


def _metadata(image: Any) -> Metadata:
    return Metadata(
        icc=_field(image, "icc-profile-data"),
        exif=_field(image, "exif-data"),
        density=(image.xres, image.yres) if abs(image.xres - _NO_DENSITY) > 1e-6 else None,
    )


def _standard(path: Path, image: Any) -> tuple[Any, bool, tuple[str, ...]]:
    """Convert to 8- or 16-bit gray or RGB; return the image, whether its profile still holds, and notes."""
    keeps_profile, notes = True, ()
    if image.interpretation == "cmyk":
        image = image.icc_transform("srgb", embedded=True, input_profile="cmyk")
        keeps_profile, notes = False, ("converted from CMYK to sRGB",)
    elif image.interpretation in ("lab", "labs", "labq", "xyz", "lch", "scrgb", "yxy", "hsv"):
        image = image.colourspace("srgb")
        keeps_profile, notes = False, (f"converted from {image.interpretation} to sRGB",)
    if image.format not in ("uchar", "ushort"):
        raise InputError(
            f"{path}: pixels of type {image.format} have no known range; save it with 8 or 16 bits"
        )
    if not 1 <= image.bands <= 4:
        raise InputError(f"{path}: {image.bands} channels; save it as gray or RGB, with or without alpha")
    if image.bands == 3 and image.interpretation in ("b-w", "grey16"):
        raise InputError(f"{path}: gray with two extra channels; save it with one extra channel, alpha")
    return image, keeps_profile, notes


def _decode_bmp(path: Path, max_pixels: int) -> ArrayRaster:
    with open_image(path, max_pixels) as image:
        gray = image.mode in ("1", "L")
        alpha = image.mode in ("RGBA", "LA", "PA")
        density = image.info.get("dpi")
        array = np.atleast_3d(np.array(image.convert("L" if gray else "RGBA" if alpha else "RGB")))
    return array_raster(array, Metadata(density=density and (density[0] / 25.4, density[1] / 25.4)))


def _check_size(path: Path, width: int, height: int, max_pixels: int | None, whole: bool) -> None:
    limit = max_pixels or (WHOLE_MAX_PIXELS if whole else STREAMED_MAX_PIXELS)
    if width * height > limit:
        why = " for files that are decoded whole" if whole and not max_pixels else ""
        raise InputError(
            f"{path}: {width} x {height} pixels are more than the limit of {limit}{why}; if you trust the "
            f"file, raise the limit with --max-pixels {width * height}"
        )
