"""What a training step shows and keeps of its course: progress, curves, validation."""

from __future__ import annotations

import copy
import csv
import sys
import time
from collections.abc import Mapping
from itertools import chain
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cabm.data.store import PackedStore
from cabm.evaluation.store import check_measurable, evaluate_store, mean_bits
from cabm.files import atomic_write
from cabm.models import Backbone
from cabm.project.sections import EvaluateSettings, TrainingSettings
from cabm.tables.table import EdgeToBitTable
from cabm.tracking.tracker import Tracker
from cabm.training.distributed import ALONE, Group
from cabm.training.loop import Progress
from cabm.upscaling.runners import ModelRunner
from cabm.upscaling.tiles import TiledResult, super_resolve


class Validation:
    """Measures weights on the validation images, tile by tile as the evaluation does.

    Args:
        store: validation images.
        model: gives the architecture; a copy of it is measured.
        table: bits by edge score, for CABM models.
        settings: tile and step.
        autocast: type that convolutions compute in.
        group: the processes that measure together, each its share of the images.
    """

    def __init__(
        self,
        store: PackedStore,
        model: Backbone,
        table: EdgeToBitTable | None,
        settings: EvaluateSettings,
        autocast: torch.dtype | None,
        group: Group = ALONE,
    ) -> None:
        check_measurable(store)  # now, and not after the first hour
        self.store = store
        self.table = table
        self.settings = settings
        self.group = group
        self.runner = ModelRunner(copy.deepcopy(model), autocast, collapse_tail=True)

    def measure(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Return mean ``psnr``, ``ssim``, and for models with bits ``fab``.

        They are the same in all processes.
        """
        self.runner.model.load_state_dict(weights)
        own = range(self.group.rank, len(self.store), self.group.size)
        rows = []
        for index, image in zip(own, evaluate_store(self.store, self._upscale, images=own), strict=True):
            bits, bypassed = image.result.bits, image.result.bypassed
            tiles = None if bits is None else (bits.tolist(), bypassed.tolist())
            rows.append((index, image.psnr, image.ssim, tiles))
        # in the order of one process, so that the means are the same to the bit
        rows = sorted(chain.from_iterable(self.group.gather(rows)), key=itemgetter(0))
        _, psnr, ssim, tiles = zip(*rows, strict=True)
        tiles = [(np.array(bits), np.array(bypassed)) for bits, bypassed in filter(None, tiles)]
        means = {"psnr": float(np.mean(psnr)), "ssim": float(np.mean(ssim))}
        means |= mean_bits([bits for bits, _ in tiles], [bypassed for _, bypassed in tiles])
        return {name: value for name, value in means.items() if name in ("psnr", "ssim", "fab")}

    def _upscale(self, image: np.ndarray) -> TiledResult:
        return super_resolve(
            self.runner,
            image,
            table=self.table,
            tile=self.settings.tile,
            stride=self.settings.stride,
            size_multiple=self.runner.model.size_multiple,
        )


class Recorder:
    """Training callback: averages of the loss's parts, and validations, as rows of a curve.

    The row that is still filling stands last in the history, so that it survives a resume.
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
        """Take in one step."""
        self._take_in(progress, time.perf_counter() - self.since)
        self.since = time.perf_counter()  # validation is not training

    def timing(self) -> dict[str, float]:
        """Return ``seconds`` in training steps, of all runs that led here, and ``patches_per_second``."""
        seconds = sum(row["seconds"] for row in self.history)
        if not seconds:
            return {}
        rate = self.settings.steps * self.settings.batch_size / seconds
        return {"seconds": round(seconds, 2), "patches_per_second": round(rate, 2)}

    def _take_in(self, progress: Progress, seconds: float) -> None:
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
    """Training callback: loss, patches per second and time left on stderr."""

    def __init__(self, title: str, steps: int, batch_size: int, *, shown: bool = True) -> None:
        self.batch_size = batch_size
        # a log file gets a line now and then, not a stream of carriage returns
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
        """Take in one step."""
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
        """End the bar's line."""
        self.bar.close()


def write_curves(path: Path, history: list[dict[str, Any]]) -> None:
    """Write the rows of a history as CSV, one column per quantity, empty where not measured.

    Times are left out, so that equal trainings have equal files.
    """
    names = [name for name in dict.fromkeys(name for row in history for name in row) if name != "seconds"]
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names or ["step"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(history)
