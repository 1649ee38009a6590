"""Callbacks of the training loop: the training curve and the progress bar."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from cabm.files import atomic_write
from cabm.project.sections import TrainingSettings
from cabm.tracking.tracker import Tracker
from cabm.training.loop import Progress
from cabm.training.validation import Validation


class Recorder:
    """Training callback that averages the loss's parts and validates, as rows of a training curve.

    The last row of the history may be incomplete, so that a resumed training continues it.

    Args:
        tracker: records the finished rows.
        log_every: steps per row.
        settings: steps, batch size, learning rate and interval of validations.
        validation: measures the weights.
    """

    def __init__(
        self, tracker: Tracker, log_every: int, settings: TrainingSettings, validation: Validation
    ) -> None:
        self.tracker = tracker
        self.log_every = log_every
        self.settings = settings
        self.validation = validation
        self.history: list[dict[str, Any]] = []
        self.since = time.perf_counter()

    def __call__(self, progress: Progress) -> None:
        """Add one step to the curve."""
        self._add(progress, time.perf_counter() - self.since)
        self.since = time.perf_counter()  # leaves out the validation

    def timing(self) -> dict[str, float]:
        """Return ``seconds`` in steps, those of interrupted runs too, and ``patches_per_second``."""
        seconds = sum(row["seconds"] for row in self.history)
        if not seconds:
            return {}
        rate = self.settings.steps * self.settings.batch_size / seconds
        return {"seconds": round(seconds, 2), "patches_per_second": round(rate, 2)}

    def _add(self, progress: Progress, seconds: float) -> None:
        self.history = history = progress.history
        if not history or "sums" not in history[-1]:
            history.append({"step": progress.step, "count": 0, "seconds": 0.0, "sums": {}})
        open_row = history[-1]
        open_row["count"] += 1
        open_row["seconds"] += seconds
        for name, value in progress.parts.items():
            open_row["sums"][name] = open_row["sums"].get(name, 0.0) + value
        every = self.settings.validate_every
        validate = bool(every) and progress.step % every == 0 and progress.step < self.settings.steps
        if progress.step % self.log_every and not validate and progress.step < self.settings.steps:
            return
        rate = open_row["count"] * self.settings.batch_size / max(open_row["seconds"], 1e-9)
        row = {"step": progress.step, "learning_rate": self.settings.learning_rate * progress.rate}
        row |= {"seconds": round(open_row["seconds"], 3)}
        row |= {f"train_{name}": total / open_row["count"] for name, total in open_row["sums"].items()}
        if validate:
            measured = self.validation.measure(progress.weights)
            row |= {f"validation_{name}": value for name, value in measured.items()}
        history[-1] = row
        shown = {name: value for name, value in row.items() if name not in ("step", "seconds")}
        self.tracker.metrics(shown | {"patches_per_second": rate}, progress.step)


class ProgressBar:
    """Training callback that shows loss, patches per second and remaining time on stderr."""

    def __init__(self, title: str, steps: int, batch_size: int, *, shown: bool = True) -> None:
        self.batch_size = batch_size
        # few updates in a log file, where each one is kept
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self.bar = tqdm(
            total=steps,
            desc=title,
            unit="step",
            mininterval=interval,
            maxinterval=interval,
            disable=not shown,
        )
        self.smooth: float | None = None

    def __call__(self, progress: Progress) -> None:
        """Show one step."""
        if self.bar.disable:
            return
        if self.smooth is None:
            self.bar.initial = self.bar.n = progress.step - 1
        loss = progress.parts["l1"]
        self.smooth = loss if self.smooth is None else 0.98 * self.smooth + 0.02 * loss
        shown = f"L1 {self.smooth:.3f}"
        if "fab" in progress.parts:
            shown += f", FAB {progress.parts['fab']:.2f}"
        if rate := self.bar.format_dict["rate"]:
            shown += f", {rate * self.batch_size:.0f} patches/s"
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()

    def __enter__(self) -> Self:
        """Return the bar."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bar."""
        self.bar.close()


def write_curves(path: Path, history: list[dict[str, Any]]) -> None:
    """Write a training curve as CSV, one column per quantity, with empty cells for missing values.

    Durations are left out, so that equal trainings write equal files.
    """
    names = [name for name in dict.fromkeys(name for row in history for name in row) if name != "seconds"]
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names or ["step"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(history)
