"""How a quantizer's integer codes are stored in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np

from cabm.quant.levels import num_levels


class Storage(Enum):
    """How codes are stored: type, byte of code 0, and whether codes can be negative."""

    POSITIVE = (np.uint8, 0, False)  # after a ReLU; the fastest input of a convolution
    SHIFTED = (np.uint8, 128, True)  # for negative inputs: convolutions read unsigned bytes only
    SIGNED = (np.int8, 0, True)  # for negative outputs: oneDNN would round the shift, too


@dataclass(frozen=True)
class Grid:
    """The codes of one quantizer at one width, as bytes: value = (byte - zero) * scale (PAMS, eq. 2).

    All factors are the float32 numbers of the simulation (`cabm.quant`), so equal sums round to equal
    codes.

    Attributes:
        alpha: clip value, > 0.
        bits: width, 2..8; below 8 bits a part of the byte's range is used.
        storage: how the codes are stored.
        unsigned: codes are 0..2^bits - 1; only for storages without a sign.
    """

    alpha: float
    bits: int
    storage: Storage
    unsigned: bool = False

    @cached_property
    def levels(self) -> int:
        """The largest code n; see `num_levels`."""
        return num_levels(self.bits, unsigned=self.unsigned)

    @cached_property
    def dtype(self) -> type[np.integer]:
        """Type of the bytes, uint8 or int8."""
        return self.storage.value[0]

    @cached_property
    def zero(self) -> int:
        """The byte of code 0."""
        return self.storage.value[1]

    @cached_property
    def low(self) -> int:
        """The smallest code: -n, or 0 for POSITIVE."""
        return -self.levels if self.storage.value[2] else 0

    @cached_property
    def scale(self) -> np.float32:
        """The step, alpha / n."""
        return np.float32(self.alpha) / np.float32(self.levels)

    @cached_property
    def inverse(self) -> np.float32:
        """n / alpha; a value times this, rounded, is its code."""
        return np.float32(self.levels) / np.float32(self.alpha)

    @cached_property
    def divisor(self) -> np.float32 | None:
        """The float32 number whose reciprocal is exactly `inverse`; None if there is none.

        oneDNN's convolutions that write codes are given a step, and multiply by its reciprocal.
        """
        candidates = (
            self.scale,
            np.nextafter(self.scale, np.float32(0)),
            np.nextafter(self.scale, np.float32(np.inf)),
        )
        exact = (candidate for candidate in candidates if np.float32(1) / candidate == self.inverse)
        return next(exact, None)
