"""`cabm bench train`: time optimizer steps, as ratios to a plain float32 step of the same run."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from cabm.bench.rounds import median_ratio
from cabm.machine.cpu import multiplies_bfloat16
from cabm.machine.memory import keep_freed_memory
from cabm.models import Backbone, build_model
from cabm.models.transfer import transfer_weights
from cabm.project.schedule import Schedule
from cabm.quant import KINDS, Kind, Precision
from cabm.training.calibration import calibrate
from cabm.training.loop import TrainingPlan, train
from cabm.training.losses import LossWeights, Objective

BATCH, PATCH = 16, 24  # as in the CADyQ release at x4; the patch in low-resolution pixels


@dataclass(frozen=True)
class Row:
    """One kind of training step.

    Attributes:
        name: the kind of step.
        seconds: per step, median over rounds.
        units: seconds divided by the plain step's seconds of the same round, median over rounds.
    """

    name: str
    seconds: float
    units: float


class _FixedBatch:
    """The same random patches at every step, so that data loading is not timed."""

    def __init__(self, scale: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.low = torch.randint(0, 256, (BATCH, 3, PATCH, PATCH), generator=generator).byte()
        self.high = self.low.repeat_interleave(scale, 2).repeat_interleave(scale, 3)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.low, self.high


def training_steps(backbone: str, scale: int, *, rounds: int, steps: int = 3) -> list[Row]:
    """Time one optimizer step of every kind, with teacher and losses, as the training stages run it.

    The unit is a plain step: float32, eager, the float backbone with its tail layer by layer. It runs in a
    process of its own with PyTorch's default handling of memory. This process keeps freed memory, as the
    stages do; the second row is the plain step with that.

    Args:
        backbone: a key of `cabm.models.BACKBONES`.
        scale: 2, 3 or 4.
        rounds: timings of each kind, at least 1.
        steps: optimizer steps per timing.

    Returns:
        The rows, the plain step first.
    """
    keep_freed_memory()
    data = _FixedBatch(scale)
    models = _models(backbone, scale, data)
    fast = torch.bfloat16 if multiplies_bfloat16(torch.device("cpu")) else None
    with _plain_step(backbone, scale, steps) as unit:
        runs = {"unit (float, fp32 eager)": unit, "unit, freed memory kept": _eager(backbone, scale, steps)}
        for kind in KINDS:
            runs[kind] = lambda kind=kind: _time(models[kind], _objective(kind, models), data, fast, steps)
        timings: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run()  # first calls choose kernels and allocate
        for _ in range(rounds):
            for name, run in runs.items():
                timings[name].append(run())
    units = next(iter(timings.values()))
    return [
        Row(name, statistics.median(found), median_ratio(found, units)) for name, found in timings.items()
    ]


def _eager(backbone: str, scale: int, steps: int) -> Callable[[], float]:
    """Return a function that times plain steps: float32, eager, the float backbone."""
    model = build_model(backbone, scale, Precision("float"))
    data = _FixedBatch(scale)
    return lambda: _time(model, Objective(LossWeights()), data, None, steps)


@contextmanager
def _plain_step(backbone: str, scale: int, steps: int) -> Iterator[Callable[[], float]]:
    """Yield a function that times plain steps in another process, which sleeps in between."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(
        target=_serve_timings, args=(there, backbone, scale, steps, torch.get_num_threads()), daemon=True
    )
    process.start()
    there.close()  # or the end of the process would not close the pipe

    def ask() -> float:
        here.send(True)
        return here.recv()

    try:
        yield ask
    finally:
        process.terminate()
        process.join()


def _serve_timings(connection: Connection, backbone: str, scale: int, steps: int, threads: int) -> None:
    torch.set_num_threads(threads)
    run = _eager(backbone, scale, steps)
    while connection.recv():
        connection.send(run())


def _models(backbone: str, scale: int, data: _FixedBatch) -> dict[str, Backbone]:
    torch.manual_seed(0)
    models: dict[str, Backbone] = {}
    previous: Backbone | None = None
    for kind in KINDS:
        model = build_model(backbone, scale, Precision(kind))
        if previous is not None:
            unset = transfer_weights(previous, model)
            if unset:
                calibrate(model, data, 1, only=set(unset))
        previous = model
        models[kind] = model.to(memory_format=torch.channels_last)
    return models


def _objective(kind: Kind, models: dict[str, Backbone]) -> Objective:
    border = models["float"].tail_border or 0
    if kind == "float":
        return Objective(LossWeights(border=border))
    weights = LossWeights(feature=1000, blocks=100, bits=1e-4, border=border)
    teacher = models["float" if kind == "pams" else "pams"]
    if kind != "cabm":
        return Objective(weights, teacher)
    widths = torch.tensor(models["cabm"].precision.search_space)
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, len(widths), (BATCH, models["cabm"].num_adaptive), generator=generator)
    return Objective(weights, teacher, bits=lambda low: widths[index])


def _time(
    model: Backbone, objective: Objective, data: _FixedBatch, autocast: torch.dtype | None, steps: int
) -> float:
    rates = {"weights": 1e-6, "alpha": 1e-6, "selector": 1e-6}
    plan = TrainingPlan(steps, rates, Schedule(kind="constant"), autocast=autocast)
    started = time.perf_counter()
    train(model, objective, data, plan)
    return (time.perf_counter() - started) / steps
