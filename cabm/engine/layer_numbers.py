"""Names of the columns of a step (`cabm.engine.steps`), of its numbers, and of its epilogue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

CONVOLVE, POINTWISE, ENCODE, COPY, FIX = range(5)
"""Kinds of steps: a 3x3 convolution of codes, a 1x1 convolution of floats, the input as codes, a copy of
the input, and an image of floats in fixed point."""

(
    KIND,
    SOURCE,
    INPUTS,
    OUTPUTS,
    WEIGHTS,
    STARTS,
    FACTORS,
    BIASES,
    EPILOGUE,
    TARGET,
    FOLLOWING,
    FLOATS,
    FLOATS_AT,
    ADDEND,
    ADDEND_AT,
    LAG,
    FIELDS,
) = range(17)
"""Columns of a step; see `cabm.engine.steps.step_loop`."""

SLOPE, GAIN, INVERSE, LOW, HIGH, ROUNDING, STEP, SKIP_STEP, AFTER = range(9)
READ_INVERSE, READ_HIGH, NEXT_INVERSE, NEXT_HIGH, NUMBERS = range(9, 14)
"""Places of a step's numbers, float32; see `Epilogue`."""

CHANNELS, FILL, KEPT = range(3)
"""Columns of an image: numbers per pixel; the byte of code 0, or one of the next four; bands of rows that
are kept while a group runs, 0: all rows."""

FLOATING, CLEARED, RESULT, ROUNDED, FIXED = -1, -2, -3, -4, -5
"""Images of float32 instead of bytes: one that starts with any numbers or with zeros, and the result; one
of bfloat16 that starts with zeros; and one in fixed point (`cabm.engine.fixed_pointwise`) that starts with
any numbers, because weights of 0 multiply those that no step writes."""

ZERO = 128
"""Byte of code 0 for codes with a sign."""

ROUND = 12582912.0
"""1.5 * 2^23: added to a float32 below 2^22, it rounds to the nearest whole number, ties to even.

The lowest byte of ROUND + 128 + x is that of x + 128.
"""


@dataclass(frozen=True)
class Epilogue:
    """What a step does with the sums of a convolution: value = sum * factor + bias, then in this order:

    Attributes:
        single: the sums are float32 and already the values.
        leaky: negative values are multiplied by SLOPE.
        coded: values are multiplied by GAIN and rounded to signed codes by INVERSE and HIGH, then decoded
            by STEP.
        adds: added to the values: the target's codes, whose step is SKIP_STEP, or floats. Negative sums
            with floats are multiplied by AFTER.
        codes: ``own``: codes by INVERSE, LOW, HIGH and ROUNDING; ``two``: signed codes for the next
            convolution to read (READ) and for the next skip connection (NEXT), by an inverse step and
            the largest code each.
        floats: values are also, or only, written as float32.
        rounded: floats are read and written as bfloat16.
    """

    single: bool = False
    leaky: bool = False
    coded: bool = False
    adds: Literal["codes", "floats"] | None = None
    codes: Literal["own", "two"] | None = None
    floats: bool = False
    rounded: bool = False


EPILOGUES = (
    TO_CODES := Epilogue(codes="own"),
    LEAKY_TO_CODES := Epilogue(leaky=True, codes="own"),
    LEAKY_TO_FLOATS := Epilogue(leaky=True, floats=True),
    LEAKY_TO_BOTH := Epilogue(leaky=True, codes="own", floats=True),
    CODED_SUM_TO_CODES := Epilogue(coded=True, adds="codes", codes="two"),
    CODED_SUM_TO_FLOATS := Epilogue(coded=True, adds="codes", floats=True),
    SUM_TO_CODES := Epilogue(adds="codes", codes="two"),
    SUM_TO_FLOATS := Epilogue(adds="codes", floats=True),
    JOIN := Epilogue(leaky=True, adds="floats", floats=True),
    SINGLE_TO_FLOATS := Epilogue(single=True, leaky=True, floats=True),
    SINGLE_TO_BOTH := Epilogue(single=True, leaky=True, codes="own", floats=True),
    *(replace(each, rounded=True) for each in (JOIN, SINGLE_TO_FLOATS, SINGLE_TO_BOTH)),
)
"""All epilogues; a step names one by its index."""

WRITE_FLOATS = tuple(each.floats for each in EPILOGUES)
"""Whether each epilogue writes floats."""

FLOAT_BYTES = tuple(2 if each.rounded else 4 for each in EPILOGUES)
"""Bytes of each epilogue's floats."""
