"""Rasters: images that are read from top to bottom in blocks of rows, as often as needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cabm.errors import InputError
from cabm.imaging.metadata import Metadata


@dataclass(frozen=True)
class Raster(ABC):
    """An image that can be read from top to bottom, any number of times.

    Attributes:
        height, width: in pixels.
        channels: 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha (never premultiplied).
        dtype: uint8 or uint16.
        metadata: from the image file.
        notes: conversions that the user should know about.
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype
    metadata: Metadata
    notes: tuple[str, ...]

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes, with those that decoding brought."""
        return self.notes

    @abstractmethod
    def blocks(self, num_rows: int = 64) -> Iterator[np.ndarray]:
        """Yield (n, width, channels) blocks of at most ``num_rows`` rows, from top to bottom."""


@dataclass(frozen=True)
class ArrayRaster(Raster):
    """An image in memory; made by `array_raster`.

    Attributes:
        array: (H, W, C) uint8 or uint16.
    """

    array: np.ndarray

    def blocks(self, num_rows: int = 64) -> Iterator[np.ndarray]:
        """See `Raster`."""
        for top in range(0, self.height, num_rows):
            yield self.array[top : top + num_rows]


@dataclass(frozen=True)
class AlphaRaster(Raster):
    """The alpha channel of an image as a gray image; made by `alpha_raster`.

    Attributes:
        image: the image.
    """

    image: Raster

    def blocks(self, num_rows: int = 64) -> Iterator[np.ndarray]:
        """See `Raster`."""
        for block in self.image.blocks(num_rows):
            yield block[..., -1:]

    def varies(self) -> bool:
        """Return whether not all pixels are equal; reads up to the first difference."""
        first = None
        for block in self.blocks():
            first = block.flat[0] if first is None else first
            if (block != first).any():
                return True
        return False


def alpha_raster(image: Raster) -> AlphaRaster:
    """Return the last channel of an image as a gray image."""
    return AlphaRaster(image.height, image.width, 1, image.dtype, Metadata(), (), image)


def array_raster(
    array: np.ndarray, metadata: Metadata | None = None, notes: tuple[str, ...] = ()
) -> ArrayRaster:
    """Return a raster of an array, without copying it.

    Args:
        array: (H, W, C) with 1 to 4 channels, uint8 in 0..255 or uint16 in 0..65535.
        metadata, notes: see `Raster`.

    Raises:
        InputError: the array has another shape or type.
    """
    if array.ndim != 3 or not 1 <= array.shape[2] <= 4 or 0 in array.shape:
        raise InputError(f"an array of shape {array.shape} is not an image; give (H, W) or (H, W, C)")
    if array.dtype not in (np.uint8, np.uint16):
        raise InputError(f"an image of {array.dtype}; give uint8 (0..255) or uint16 (0..65535)")
    return ArrayRaster(*array.shape, array.dtype, metadata or Metadata(), notes, array)


def in_memory(raster: Raster) -> ArrayRaster:
    """Decode a raster into memory."""
    array = np.concatenate(list(raster.blocks(256)))
    return array_raster(array, raster.metadata, raster.all_notes)


def rounded_to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Return integers in 0..65535 as uint8 in 0..255, rounded to the nearest."""
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
