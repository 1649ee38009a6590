"""The codes of a quantizer at a width."""

from __future__ import annotations

PAMS_BITS = 8
"""Width of PAMS models, and of all positions that are not adaptive."""


def num_levels(bits: int, *, unsigned: bool = False) -> int:
    """Return n, the largest code of a b-bit quantizer.

    Signed codes are -n..n with n = 2^(b-1) - 1 (PAMS, eq. 2). Unsigned codes are 0..n with n = 2^b - 1, for
    values that are never negative. Both are x n / alpha, rounded and clipped, so n is the only difference.
    """
    return 2**bits - 1 if unsigned else 2 ** (bits - 1) - 1
