"""Learning-rate schedules: a factor that depends on the step alone."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StrictFloat


class Schedule(BaseModel, extra="forbid", frozen=True):
    """A factor over the optimizer steps, common to all learning rates (weights, alpha, selector)."""

    kind: Literal["constant", "halve", "cosine"] = "cosine"
    """constant, halve (at each of ``halve_at``) or cosine (down to ``final`` after the warm-up)."""

    warmup: Annotated[StrictFloat, Field(ge=0, lt=1)] = 0.0
    """Share of the steps over which the factor rises linearly from 0 to 1, 0..1."""

    halve_at: tuple[Annotated[StrictFloat, Field(gt=0, lt=1)], ...] = (0.5,)
    """Shares of the steps at which ``halve`` halves the factor, each between 0 and 1."""

    final: Annotated[StrictFloat, Field(ge=0, le=1)] = 0.01
    """Last factor of ``cosine``, 0..1."""

    def factor(self, step: int, steps: int) -> float:
        """Return the factor of ``step``, 0..``steps`` - 1."""
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
