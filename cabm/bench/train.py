"""How long training steps take, as ratios to one unit measured in the same run."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from cabm.machine.cpu import multiplies_bfloat16
from cabm.machine.memory import keep_freed_memory
from cabm.models import Backbone, build_model
from cabm.models.transfer import transfer_weights
from cabm.project.schedule import Schedule
from cabm.quant import KINDS, Kind, Precision
from cabm.training.loop import TrainingPlan, calibrate, train
from cabm.training.losses import LossWeights, Objective

BATCH, PATCH = 16, 24  # the unit's (and the CADyQ release's LR patch at x4)


@dataclass(frozen=True)
class Row:
    """One kind of training step.

    Attributes:
        name: what was timed.
        seconds: median of a step.
        units: median over rounds of seconds over that round's unit.
    """

    name: str
    seconds: float
    units: float


class _FixedBatch:
    """The same random patches at every step: data loading is not what is timed."""

    def __init__(self, scale: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.low = torch.randint(0, 256, (BATCH, 3, PATCH, PATCH), generator=generator).byte()
        self.high = self.low.repeat_interleave(scale, 2).repeat_interleave(scale, 3)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.low, self.high


def training_steps(backbone: str, scale: int, *, rounds: int, steps: int = 3) -> list[Row]:
    """Time one optimizer step of every kind, teacher and losses included, as the training stages take it.

    The unit is a float32 eager step of the same float backbone with its tail as written, in a process of
    its own whose memory is left to PyTorch and the C library. Here freed memory is kept, as in the stages;
    the second row is the unit's step with that. Rounds interleave the kinds, so that a machine whose speed
    drifts drifts under all of them.

    Args:
        backbone: a key of `cabm.models.BACKBONES`.
        scale: upscaling.
        rounds: how often each kind is timed; at least 1.
        steps: optimizer steps per timing.
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
        Row(
            name,
            statistics.median(found),
            statistics.median(a / b for a, b in zip(found, units, strict=True)),
        )
        for name, found in timings.items()
    ]


def _eager(backbone: str, scale: int, steps: int) -> Callable[[], float]:
    """Return what times float32 eager steps of the float backbone."""
    model = build_model(backbone, scale, Precision("float"))
    data = _FixedBatch(scale)
    return lambda: _time(model, Objective(LossWeights()), data, None, steps)


@contextmanager
def _plain_step(backbone: str, scale: int, steps: int) -> Iterator[Callable[[], float]]:
    """Give what times those steps in a process of its own; it sleeps between."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(
        target=_serve_timings, args=(there, backbone, scale, steps, torch.get_num_threads()), daemon=True
    )
    process.start()
    there.close()  # or the end of the process would not be seen here

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
    widths = torch.tensor([bits for bits in models["cabm"].precision.search_space if bits])
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
