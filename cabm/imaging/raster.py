"""Image files read from top to bottom in blocks of rows, as often as wanted, in bounded memory.

libvips decodes PNG, JPEG and TIFF row by row; WebP, interlaced PNG and progressive JPEG it decodes whole,
and so is BMP, which Pillow reads. What reaches the caller is 8 or 16 bit gray or RGB, with or without
alpha, upright. Colours are not converted where the file says how to read them: the profile goes along.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cabm.errors import InputError
from cabm.imaging.images import open_image

STREAMED_MAX_PIXELS = 1 << 30
"""Default limit for images that are decoded row by row."""
WHOLE_MAX_PIXELS = 1 << 27
"""Default limit for images that must be decoded whole: 400 MB of RGB."""

_UPRIGHT = 1  # EXIF orientation
_MIN_DENSITY = 1.0  # pixels per mm that libvips reports where the file states none
_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"BM", "bmp"),
)


@dataclass(frozen=True)
class Metadata:
    """What an image file says beside its pixels.

    Attributes:
        icc: colour profile.
        exif: EXIF block, as libvips holds it.
        density: pixels per millimetre in x and y; None where the file states none.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    density: tuple[float, float] | None = None


class Raster(Protocol):
    """An image that can be read from top to bottom, any number of times.

    Attributes:
        height, width: pixels.
        channels: 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha (never premultiplied).
        dtype: uint8 or uint16.
        metadata: what else the file says.
        notes: what was done to the pixels that the user should know, for people.
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype
    metadata: Metadata
    notes: tuple[str, ...]

    def blocks(self, num_rows: int = 64) -> Iterator[np.ndarray]:
        """Yield (n, width, channels) blocks of at most ``num_rows`` rows, from the top."""
        ...


@dataclass(frozen=True)
class ArrayRaster:
    """A raster in memory: (H,W,C) uint8 or uint16."""

    array: np.ndarray
    metadata: Metadata = Metadata()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        array = self.array
        if array.ndim != 3 or not 1 <= array.shape[2] <= 4 or 0 in array.shape:
            raise InputError(f"an array of shape {array.shape} is not an image; give (H, W) or (H, W, C)")
        if array.dtype not in (np.uint8, np.uint16):
            raise InputError(f"an image of {array.dtype}; give uint8 (0..255) or uint16 (0..65535)")

    @property
    def height(self) -> int:
        """Rows."""
        return self.array.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.array.shape[1]

    @property
    def channels(self) -> int:
        """See `Raster`."""
        return self.array.shape[2]

    @property
    def dtype(self) -> np.dtype:
        """See `Raster`."""
        return self.array.dtype

    def blocks(self, num_rows: int = 64) -> Iterator[np.ndarray]:
        """See `Raster`."""
        for top in range(0, self.height, num_rows):
            yield self.array[top : top + num_rows]


@dataclass(frozen=True)
class FileRaster:
    """A raster that is decoded anew on every pass; made by `open_raster`."""

    path: Path
    format: str
    height: int
    width: int
    channels: int
    dtype: np.dtype
    metadata: Metadata
    notes: tuple[str, ...]

    def blocks(self, num_rows: int = 64) -> Iterator[np.ndarray]:
        """See `Raster`.

        Raises:
            InputError: the file turns out to be corrupt or truncated.
        """
        import pyvips

        if self.format == "bmp":
            yield from ArrayRaster(_decode_bmp(self.path, self.height * self.width)[0]).blocks(num_rows)
            return
        with _decoding(self.path):
            image = _upright(self.path, self.format)
            image, _, _ = _standard(self.path, image)
            region = pyvips.Region.new(image)
            for top in range(0, self.height, num_rows):
                rows = min(num_rows, self.height - top)
                data = region.fetch(0, top, self.width, rows)
                block = np.frombuffer(data, self.dtype)
                yield block.reshape(rows, self.width, self.channels)


def open_raster(path: str | Path, max_pixels: int | None = None) -> FileRaster:
    """Open a PNG, JPEG, WebP, TIFF or BMP file.

    Gray, palette, RGB, with or without alpha, 1 to 16 bits; CMYK and Lab are converted to sRGB. The EXIF
    orientation is applied. Of several pages or frames the first is read.

    Args:
        path: the file.
        max_pixels: the largest width times height to accept; None: `STREAMED_MAX_PIXELS`, or
            `WHOLE_MAX_PIXELS` where the format cannot be decoded row by row.

    Raises:
        InputError: no such file, not an image, not readable, too large, or pixels of no known range.
    """
    path = Path(path)
    kind = _sniff(path)
    if kind == "bmp":
        array, metadata = _decode_bmp(path, max_pixels or WHOLE_MAX_PIXELS)
        return FileRaster(path, kind, *array.shape, array.dtype, metadata, ())
    with _decoding(path):
        image = _upright(path, kind)
        whole = kind == "webp" or bool(_field(image, "interlaced") or _field(image, "jpeg-multiscan"))
        _check_size(path, image.width, image.height, max_pixels, whole)
        metadata = _metadata(image)
        notes: tuple[str, ...] = ()
        if (_field(image, "n-pages") or 1) > 1:
            notes += (f"first of {_field(image, 'n-pages')} pages",)
        image, keeps_profile, colour_notes = _standard(path, image)
        dtype = np.dtype(np.uint8 if image.format == "uchar" else np.uint16)
        size = (image.height, image.width, image.bands)
    metadata = metadata if keeps_profile else replace(metadata, icc=None)
    return FileRaster(path, kind, *size, dtype, metadata, notes + colour_notes)


def in_memory(raster: Raster) -> ArrayRaster:
    """Decode a raster once and for all."""
    return ArrayRaster(np.concatenate(list(raster.blocks(256))), raster.metadata, raster.notes)


def _sniff(path: Path) -> str:
    """Name the format by the first bytes, which do not lie as names do."""
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder, not an image' if path.is_dir() else 'no such file'}")
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not start:
        raise InputError(f"{path}: the file is empty (0 bytes); copy it again")
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return "webp"
    for magic, kind in _FORMATS:
        if start.startswith(magic):
            return kind
    raise InputError(f"{path}: not an image that can be read (PNG, JPEG, WebP, TIFF or BMP)")


class _decoding:
    """Turn libvips' errors into one line about the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if kind is None or not _is_vips_error(error):
            return
        detail = " ".join(str(error).split())[-160:]
        raise InputError(
            f"{self.path}: the image is corrupt or truncated ({detail}); copy it again"
        ) from None


def _is_vips_error(error: BaseException | None) -> bool:
    import pyvips

    return isinstance(error, pyvips.Error)


def _load(path: Path, kind: str, access: str) -> Any:
    import pyvips

    pyvips.cache_set_max(0)  # a cached file would be read as it was, and held in memory
    options: dict[str, Any] = {"access": access, "fail_on": "error"}
    if kind in ("png", "jpeg"):
        options["unlimited"] = True  # our own limit is checked
    return pyvips.Operation.call(f"{kind}load", str(path), **options)


def _upright(path: Path, kind: str) -> Any:
    """Open the image with its orientation applied."""
    image = _load(path, kind, "sequential")
    if (_field(image, "orientation") or _UPRIGHT) == _UPRIGHT:
        return image
    # turned rows need all columns: libvips decodes once, to memory or, above 100 MB, to a temporary file
    return _load(path, kind, "random").autorot()


def _field(image: Any, name: str) -> Any:
    return image.get(name) if image.get_typeof(name) else None


def _metadata(image: Any) -> Metadata:
    stated = image.xres > _MIN_DENSITY + 1e-6 or image.xres < _MIN_DENSITY - 1e-6
    return Metadata(
        icc=_field(image, "icc-profile-data"),
        exif=_field(image, "exif-data"),
        density=(image.xres, image.yres) if stated else None,
    )


def _standard(path: Path, image: Any) -> tuple[Any, bool, tuple[str, ...]]:
    """Convert to 8 or 16 bit gray or RGB; return it, whether its profile still holds, and notes."""
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
        raise InputError(f"{path}: {image.bands} channels; 1 to 4 can be upscaled (gray or RGB, and alpha)")
    if image.bands == 3 and image.interpretation in ("b-w", "grey16"):
        raise InputError(f"{path}: gray with two extra channels; only one, alpha, can be upscaled")
    return image, keeps_profile, notes


def _decode_bmp(path: Path, max_pixels: int) -> tuple[np.ndarray, Metadata]:
    with open_image(path, max_pixels) as image:
        gray = image.mode in ("1", "L")
        alpha = image.mode in ("RGBA", "LA", "PA")
        density = image.info.get("dpi")
        array = np.atleast_3d(np.array(image.convert("L" if gray else "RGBA" if alpha else "RGB")))
    return array, Metadata(density=density and (density[0] / 25.4, density[1] / 25.4))


def _check_size(path: Path, width: int, height: int, max_pixels: int | None, whole: bool) -> None:
    limit = max_pixels or (WHOLE_MAX_PIXELS if whole else STREAMED_MAX_PIXELS)
    if width * height > limit:
        why = ", which this kind of file allows, as it is decoded whole" if whole and not max_pixels else ""
        raise InputError(
            f"{path}: {width} x {height} pixels are more than the limit of {limit}{why}; if you trust the "
            f"file, lift it with --max-pixels {width * height}"
        )
