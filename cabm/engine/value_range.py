"""The least and the greatest number of a row, for scales that each row has of its own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic, overload

from cabm.engine.emitter import SINGLE, SIZE, Emitter, typed_call

STREAMS = 4
"""Registers that are compared at once, because each comparison waits for the one before it."""


class Range(NamedTuple):
    """Operands of `emit_range`.

    Attributes:
        count: registers of each of `STREAMS` streams.
        starts: the streams' addresses, as int64.
        range: two float32 to write, the least number and the greatest.
    """

    count: ir.Value
    starts: ir.Value
    range: ir.Value


def emit_range(emit: Emitter, operands: Range) -> None:
    """Emit the search for the least and the greatest number, or 0."""
    builder = emit.builder
    zeros = emit.constant(emit.singles, 0)
    streams = [emit.pointer(emit.load(emit.at(operands.starts, 8 * i), SIZE)) for i in range(STREAMS)]

    def least(a, b):
        return builder.select(builder.fcmp_ordered("<", a, b), a, b)

    def greatest(a, b):
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    def step(_, *values):
        streams, low, high = (values[i : i + STREAMS] for i in range(0, 3 * STREAMS, STREAMS))
        numbers = [emit.load(stream, emit.singles) for stream in streams]
        lows = [least(a, b) for a, b in zip(numbers, low, strict=True)]
        highs = [greatest(a, b) for a, b in zip(numbers, high, strict=True)]
        return *[emit.at(stream, 4 * emit.lanes) for stream in streams], *lows, *highs

    *_, low0, low1, low2, low3, high0, high1, high2, high3 = emit.loop(
        operands.count, (*streams, *[zeros] * (2 * STREAMS)), step
    )
    low = least(least(low0, low1), least(low2, low3))
    high = greatest(greatest(high0, high1), greatest(high2, high3))
    for name, register, at in (("fmin", low, 0), ("fmax", high, 4)):
        name = f"llvm.vector.reduce.{name}.v{emit.lanes}f32"
        emit.store(emit.call(name, SINGLE, [register]), emit.at(operands.range, at))


@intrinsic(prefer_literal=True)
def _compare(_, lanes, count, starts, found):
    """Find the least and the greatest number; see `Range`."""
    return typed_call(lanes, Range, {"count"}, emit_range)


def find_range(lanes, values):
    """Return the least and the greatest of numbers and 0.

    Args:
        lanes: 32-bit numbers per register.
        values: flat float32, full registers.
    """
    raise NotImplementedError("only compiled loops call this")


@overload(find_range, prefer_literal=True)
def _compile_search(lanes, values):
    size = lanes.literal_value

    def search(lanes, values):
        starts, found = np.empty(STREAMS, np.int64), np.empty(2, np.float32)
        registers = values.size // size
        each = -(-registers // STREAMS)
        for i in range(STREAMS):
            starts[i] = np.int64(values.ctypes.data) + 4 * size * min(i * each, registers - each)
        _compare(lanes, each, np.int64(starts.ctypes.data), np.int64(found.ctypes.data))
        return found[0], found[1]

    return search
