"""Layers in one compiled call: how a program describes them as steps, and how they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from cabm.engine.arrays import empty
from cabm.engine.fused import FloatWeights, Kernel
from cabm.engine.grid import Grid
from cabm.engine.layer_numbers import (
    ADDEND,
    ADDEND_AT,
    BIASES,
    CHANNELS,
    CLEARED,
    CONVOLVE,
    COPY,
    ENCODE,
    EPILOGUE,
    EPILOGUES,
    FACTORS,
    FIELDS,
    FILL,
    FIX,
    FLOATING,
    FLOATS,
    FLOATS_AT,
    FOLLOWING,
    HIGH,
    INPUTS,
    INVERSE,
    KEPT,
    KIND,
    LAG,
    LOW,
    NUMBERS,
    OUTPUTS,
    POINTWISE,
    RESULT,
    ROUND,
    ROUNDED,
    ROUNDING,
    SLOPE,
    SOURCE,
    STARTS,
    TARGET,
    WEIGHTS,
    Epilogue,
)
from cabm.engine.packing import BoundConv

Numbers = Mapping[int, Any]


class Place(NamedTuple):
    """Channels of an image of float32, from channel ``first`` on."""

    image: int
    first: int = 0


NOWHERE = Place(0)
"""For what an epilogue does not use."""


class Chain:
    """Steps that run in one compiled call; a program adds them in order.

    Args:
        kernel: the compiled call.
        channels: of the result, (h,w,C) float32.

    Attributes:
        result: image number of the result.
    """

    def __init__(self, kernel: Kernel, channels: int) -> None:
        self._kernel, self._channels = kernel, channels
        self._steps: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []
        self._images: list[list[int]] = []
        self._kept: list[np.ndarray] = []
        self._passing: list[int] = []
        self._groups: list[list[Numbers]] = []
        self.result = self._image(channels, RESULT)

    def codes(self, channels: int, zero: int) -> int:
        """Return a new image of bytes, whose code 0 is byte ``zero``."""
        return self._image(channels, zero)

    def floats(self, *parts: int, passing: bool = False, compact: bool = False) -> int:
        """Return a new image of float32, of one or several parts of so many channels, each padded.

        A ``compact`` image is of the form's 16-bit numbers; one in fixed point is written by `fix` only.
        A ``passing`` image holds only the rows that a group still needs, so that they stay in the cache.
        Each group that reads it writes it first, and has several steps.
        """
        padded = [self._kernel.padded_floats(part, compact=compact) for part in parts]
        start = FLOATING if padded == list(parts) else CLEARED
        image = self._image(sum(padded), self._kernel.form.compact if compact else start)
        if passing:
            self._passing.append(image)
        return image

    def begin_group(self) -> None:
        """Let the steps that follow take turns row by row, up to the next group.

        This pays where the steps' weights fit the core's cache and the images between them do not.
        """
        self._groups.append([])

    def encode(self, target: int, grid: Grid) -> None:
        """Write the codes of the input to an image."""
        self._step({KIND: ENCODE, TARGET: target}, own(grid))

    def copy(self, floats: int) -> None:
        """Write the input to an image of float32."""
        self._step({KIND: COPY, FLOATS: floats}, {})

    def fix(self, source: int, to: Place) -> None:
        """Write an image of float32 to one in fixed point."""
        self._step({KIND: FIX, SOURCE: source, FLOATS: to.image, FLOATS_AT: to.first}, {})

    def convolve(
        self,
        conv: BoundConv,
        epilogue: Epilogue,
        source: int,
        numbers: Numbers,
        *,
        target: int = 0,
        following: int = 0,
        floats: Place = NOWHERE,
        addend: Place = NOWHERE,
    ) -> None:
        """Convolve the codes of an image.

        Args:
            conv: with weights that the kernel packed.
            epilogue: of `cabm.engine.layer_numbers.EPILOGUES`.
            source: image to read, on the convolution's grid.
            numbers: of the epilogue.
            target, following, floats, addend: images that the epilogue writes and adds.
        """
        factors, biases = conv.affine
        step = {KIND: CONVOLVE, SOURCE: source, TARGET: target, FOLLOWING: following}
        step |= {INPUTS: conv.conv.inputs, OUTPUTS: len(conv.conv.starts)}
        step |= {EPILOGUE: self._number(epilogue, floats)}
        step |= {WEIGHTS: self._address(conv.conv.packed), STARTS: self._address(conv.conv.starts)}
        step |= {FACTORS: self._address(factors), BIASES: self._address(biases)}
        step |= {FLOATS: floats.image, FLOATS_AT: floats.first}
        step |= {ADDEND: addend.image, ADDEND_AT: addend.first}
        self._step(step, numbers)

    def pointwise(
        self,
        weights: FloatWeights,
        epilogue: Epilogue,
        source: int,
        numbers: Numbers,
        *,
        target: int = 0,
        floats: Place = NOWHERE,
    ) -> None:
        """Convolve an image of floats by a 1x1 kernel; arguments as in `convolve`."""
        biases = self._address(weights.biases)
        step = {KIND: POINTWISE, SOURCE: source, TARGET: target}
        step |= {INPUTS: weights.inputs, OUTPUTS: len(weights.biases)}
        step |= {EPILOGUE: self._number(epilogue, floats)}
        step |= {WEIGHTS: self._address(weights.packed), STARTS: biases}
        scales = biases if weights.scales is None else self._address(weights.scales)
        step |= {FACTORS: scales, BIASES: biases}
        self._step(step | {FLOATS: floats.image, FLOATS_AT: floats.first}, numbers)

    def run(self, x: np.ndarray) -> np.ndarray:
        """Run the steps on (h,w,C) float32; the result is float32, too, a view of padded channels."""
        out = empty((*x.shape[:2], self._images[self.result][CHANNELS]))
        self._kernel.run(*self._tables, np.ascontiguousarray(x), out.reshape(-1))
        return out[:, :, : self._channels]

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        for image in self._passing:
            self._images[image][KEPT] = max(_span(group, image) for group in self._groups)
            if any(len(group) == 1 and _uses(group[0], image) for group in self._groups):
                raise ValueError("a step that takes all rows at once uses an image that holds some of them")
        return np.stack(self._steps), np.stack(self._numbers), np.array(self._images)

    def _number(self, epilogue: Epilogue, floats: Place) -> int:
        """Return the number of an epilogue that writes these floats; an addend is of the same kind."""
        rounded = epilogue.floats and self._images[floats.image][FILL] == ROUNDED
        return EPILOGUES.index(replace(epilogue, rounded=rounded))

    def _address(self, numbers: np.ndarray) -> int:
        """Return the address of an array, and keep the array.

        Keeping its owner would not do: where two threads compute a cached property at once, as Python 3.12
        and later let them, the owner ends up with the array of one of them.
        """
        self._kept.append(numbers)
        return numbers.ctypes.data

    def _image(self, channels: int, fill: int) -> int:
        self._images.append([self._kernel.padded(channels), fill, 0])
        return len(self._images) - 1

    def _step(self, fields: Numbers, numbers: Numbers) -> None:
        if self._groups:
            fields = {**fields, LAG: _lag(self._groups[-1], fields)}
            self._groups[-1].append(fields)
        for rows, given, row in (
            (self._steps, fields, np.zeros(FIELDS, np.int64)),
            (self._numbers, numbers, np.zeros(NUMBERS, np.float32)),
        ):
            row[list(given)] = list(given.values())
            rows.append(row)


def _lag(before: Sequence[Numbers], step: Numbers) -> int:
    """Return how many bands of rows a step is behind the first step of its group.

    A convolution reads the row below, so it follows a band behind the step before it. Others follow that at
    once, unless they overwrite what a convolution still reads.
    """
    if not before:
        return 0
    lag = max(before[-1][LAG] + (step[KIND] == CONVOLVE), 1)
    overwritten = {step.get(field) for field in (TARGET, FOLLOWING, FLOATS)}
    read = {other[SOURCE] for other in before if other[KIND] == CONVOLVE and other[LAG] == lag}
    return lag + bool(step[KIND] != CONVOLVE and overwritten & read)


def _uses(step: Numbers, image: int) -> bool:
    """Return whether a step reads or writes an image of floats."""
    return image in (step.get(SOURCE), step.get(FLOATS), step.get(ADDEND))


def _span(group: Sequence[Numbers], image: int) -> int:
    """Return how many bands of an image of float32 a group needs at once."""
    lags = [step[LAG] for step in group if _uses(step, image)]
    return max(lags) - min(lags) + 1 if lags else 1


def own(grid: Grid, slope: float = 1.0) -> dict[int, Any]:
    """Return the numbers of an epilogue that writes ``own`` codes on a grid."""
    return {
        SLOPE: slope,
        INVERSE: grid.inverse,
        LOW: grid.low,
        HIGH: grid.levels,
        ROUNDING: ROUND + grid.zero,
    }
