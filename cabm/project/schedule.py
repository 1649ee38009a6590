"""Learning-rate schedules: the rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Schedule(BaseModel):
    """How the learning rates change over a training step.

    The factor multiplies every learning rate (weights, alpha, selector) alike.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["constant", "halve", "cosine"] = "cosine"
    """constant; halved at each of ``halve_at``; cosine to ``final`` after the warm-up."""

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps over which the rate rises linearly from zero."""

    halve_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5,)
    """Shares of the steps at which ``halve`` halves."""

    final: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Factor that ``cosine`` ends at."""

    def factor(self, step: int, steps: int) -> float:
        """Return the factor for ``step`` (from 0) of ``steps``."""
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        match self.kind:
            case "constant":
                return 1.0
            case "halve":
                return 0.5 ** sum(step >= share * steps for share in self.halve_at)
            case "cosine":
                progress = (step - warm) / max(1, steps - 1 - warm)
                return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        raise AssertionError(self.kind)
