"""Decode whole files with Pillow, where libvips has no decoder."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from cabm.errors import InputError
from cabm.imaging.formats import damaged, format_of

_limit = threading.Lock()


@contextmanager
def open_with_pillow(path: Path) -> Iterator[Image.Image]:
    """Open a file with Pillow, whatever its size; errors of decoding become InputError.

    Raises:
        InputError: the file is truncated, or not an image.
    """
    try:
        with _open_unlimited(path) as image:
            yield image
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image, or a format that is not supported") from None
    except Exception as error:  # decoders raise anything on broken bytes, even SyntaxError
        raise damaged(path, error) from None


def _open_unlimited(path: Path) -> Image.Image:
    """Read the header without Pillow's own limit on pixels, which is global."""
    with _limit, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            if format_of(path).module:
                from pillow_heif import HeifImageFile

                return HeifImageFile(path)
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = before
