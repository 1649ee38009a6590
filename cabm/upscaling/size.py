"""The size that a result gets: `OutputSize`, as it is asked for, and `Target`, for one image."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cabm.errors import InputError

MAX_PASSES = 2
"""How often the model can run on an image: a second time on its own result."""

SIZE_NAME = r"x\d+(?:\.\d+)?|\d+x\d+|(?:w|h|max)\d+"
"""Regular expression for the names that `OutputSize.name` gives."""


@dataclass(frozen=True)
class Target:
    """The size of one result, and how it is computed.

    Attributes:
        height, width: of the result, in pixels.
        passes: how often the model runs. 0: not at all, because no side becomes longer.
        computed: (height, width) after the last pass; Lanczos reduces this to the result.
    """

    height: int
    width: int
    passes: int
    computed: tuple[int, int]

    @property
    def is_reduced(self) -> bool:
        """Whether the result is smaller than what is computed."""
        return (self.height, self.width) != self.computed

    @property
    def notes(self) -> tuple[str, ...]:
        """How the size is computed, for the user, where that is not one pass of the model."""
        if self.passes == 0:
            return ("not larger than the image: reduced without the network",)
        return ("the network ran twice",) if self.passes > 1 else ()


@dataclass(frozen=True)
class OutputSize:
    """The size of results. Without arguments: as large as the model makes them.

    The model upscales by its own scale, and Lanczos reduces that to the size. A size that is not larger
    than the image is reduced without the model. Give a size in one way only, except that ``width`` and
    ``height`` go together.

    Args:
        width, height: sides of the result in pixels. With one of them, the aspect ratio is kept; with both,
            the result has that size exactly, stretched if it must be.
        factor: of both sides, such as 2.5.
        max_side: limit on the longer side in pixels; images are upscaled as far as the model does, or less.
        passes: how often the model may run, 1 or 2. The second time it runs on its own result, where the
            size needs that: a model of scale 4 reaches 16.

    Raises:
        InputError: a value is out of range, or the size is given in two ways.
    """

    width: int | None = None
    height: int | None = None
    factor: float | None = None
    max_side: int | None = None
    passes: int = 1

    def __post_init__(self) -> None:
        ways = {
            "width and height": self.width if self.width is not None else self.height,
            "factor": self.factor,
            "max-side": self.max_side,
        }
        given = [way for way, value in ways.items() if value is not None]
        if len(given) > 1:
            raise InputError(f"the size is given by {' and by '.join(given)}; give it in one way")
        for name, side in (("width", self.width), ("height", self.height), ("max-side", self.max_side)):
            if side is not None and side < 1:
                raise InputError(f"{name} {side}: give at least 1 pixel")
        if self.factor is not None and not (math.isfinite(self.factor) and self.factor > 0):
            raise InputError(f"factor {self.factor}: give a number above 0, such as 2.5")
        if not 1 <= self.passes <= MAX_PASSES:
            raise InputError(f"passes {self.passes}: the model runs once or twice")

    def name(self, scale: int) -> str:
        """Return the size as part of a file name: ``x4``, ``x2.5``, ``3840x2160``, ``w3840``, ``max3840``.

        Args:
            scale: of the model.
        """
        if self.width and self.height:
            return f"{self.width}x{self.height}"
        for prefix, side in (("w", self.width), ("h", self.height), ("max", self.max_side)):
            if side:
                return f"{prefix}{side}"
        return f"x{scale**self.passes if self.factor is None else f'{self.factor:.15g}'}"

    def check(self, scale: int) -> None:
        """Check a factor against the scale of the model, before any image is read.

        Raises:
            InputError: the model does not reach it.
        """
        reached = scale**self.passes
        if self.factor is not None and self.factor > reached:
            raise InputError(
                f"factor {self.factor:g}: the model upscales x{reached}; {self._advice(scale)}"
            )

    def target(self, height: int, width: int, scale: int) -> Target:
        """Return the size of the result of an image.

        Args:
            height, width: of the image in pixels.
            scale: of the model.

        Raises:
            InputError: the model does not reach this size.
        """
        self.check(scale)
        reached = scale**self.passes
        high, wide = self._sides(height, width, reached)
        if high > height * reached or wide > width * reached:
            raise InputError(
                f"{wide} x {high} pixels are more than x{reached} of its {width} x {height};"
                f" {self._advice(scale)}"
            )
        passes, factor = 0, 1
        while high > height * factor or wide > width * factor:
            passes, factor = passes + 1, factor * scale
        return Target(high, wide, passes, (height * factor, width * factor))

    def _sides(self, height: int, width: int, reached: int) -> tuple[int, int]:
        """Return height and width of the result. Halves are rounded up; no side has less than a pixel."""
        if self.width and self.height:
            return self.height, self.width
        if self.width:
            return _share(height, self.width, width), self.width
        if self.height:
            return self.height, _share(width, self.height, height)
        longest = max(height, width)
        if self.max_side and self.max_side < longest * reached:
            return _share(height, self.max_side, longest), _share(width, self.max_side, longest)
        factor = reached if self.factor is None else self.factor
        return max(1, math.floor(height * factor + 0.5)), max(1, math.floor(width * factor + 0.5))

    def _advice(self, scale: int) -> str:
        if self.passes < MAX_PASSES:
            return f"--passes 2 runs the model twice, up to x{scale**MAX_PASSES}"
        return "choose a smaller size"


AS_COMPUTED = OutputSize()
"""The size that one pass of the model gives."""


def _share(side: int, numerator: int, denominator: int) -> int:
    """Return ``side * numerator / denominator``, rounded to the nearest whole number, at least 1."""
    return max(1, (2 * side * numerator + denominator) // (2 * denominator))
