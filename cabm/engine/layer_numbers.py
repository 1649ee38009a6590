"""Names of what a layer of fused residual blocks does with its sums, and of the numbers that it uses."""

from __future__ import annotations

TO_CODES, ADD_TO_CODES, ADD_TO_FLOATS = range(3)
"""Epilogues: encode the sums; or add them to the skip connection and encode, or do not encode."""

GAIN, INVERSE, LOW, HIGH, STEP, SKIP_STEP = range(6)
NEXT_READ, NEXT_SKIP, PRODUCTS, NUMBERS = 6, 8, 10, 11
"""Places of a layer's numbers; see `cabm.engine.block_loops.residual_blocks`."""

WIDE, NARROW_SIGNED, NARROW_POSITIVE = range(3)
"""How a layer multiplies: as the form does for 8 bits; or as it does for few bits, on codes of either sign
or without a sign."""

ZERO = 128
"""Byte of code 0 for codes with a sign."""
