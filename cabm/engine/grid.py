"""How the whole numbers of a quantizer stand in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
import torch

from cabm.quant.functional import num_levels


class Storage(Enum):
    """A byte form of codes: the type, the byte of code 0, and whether codes have both signs."""

    POSITIVE = (torch.uint8, 0, False)  # after a ReLU; convolutions read it fastest
    SHIFTED = (torch.uint8, 128, True)  # convolutions read unsigned bytes only
    SIGNED = (torch.int8, 0, True)  # convolutions write it exactly: the shift would be rounded too


@dataclass(frozen=True)
class Grid:
    """Codes of a quantizer as bytes: value = (byte - zero) * scale.

    All factors are the float32 numbers that the simulation computes with (`cabm.quant`), so that the
    same sums round to the same codes.

    Attributes:
        alpha: clip value, > 0.
        bits: width; fewer than 8 bits use a part of the byte's range.
        storage: the byte form.
    """

    alpha: float
    bits: int
    storage: Storage

    @cached_property
    def levels(self) -> int:
        """n, the largest code."""
        return num_levels(self.bits)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Type of the bytes."""
        return self.storage.value[0]

    @cached_property
    def zero(self) -> int:
        """Byte of code 0."""
        return self.storage.value[1]

    @cached_property
    def low(self) -> int:
        """Smallest code: -n, or 0."""
        return -self.levels if self.storage.value[2] else 0

    @cached_property
    def scale(self) -> np.float32:
        """Step alpha / n."""
        return np.float32(self.alpha) / np.float32(self.levels)

    @cached_property
    def inverse(self) -> np.float32:
        """n / alpha, by which a value is multiplied to be rounded to its code."""
        return np.float32(self.levels) / np.float32(self.alpha)

    @cached_property
    def divisor(self) -> np.float32 | None:
        """The float32 number whose reciprocal is `inverse`; None where there is none.

        Convolutions that write codes multiply by the reciprocal of what they are given.
        """
        candidates = (self.scale, np.nextafter(self.scale, np.float32(0)), np.nextafter(self.scale, np.inf))
        exact = (candidate for candidate in candidates if np.float32(1) / candidate == self.inverse)
        return next(exact, None)
