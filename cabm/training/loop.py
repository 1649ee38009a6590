"""The training loop of all steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cabm.data.patches import Sampler
from cabm.errors import TrainingDiverged
from cabm.models.base import Backbone
from cabm.project.schedule import Schedule
from cabm.training import state as resume
from cabm.training.batch_norm import synchronise_batch_norm
from cabm.training.calibration import MIN_ALPHA
from cabm.training.group import ALONE, Group
from cabm.training.losses import Objective
from cabm.training.state import Average, TrainingState, require_finite_weights


@dataclass(frozen=True)
class TrainingPlan:
    """Settings of the loop.

    Attributes:
        steps: number of optimizer steps.
        rates: learning rate of each parameter group: ``weights``, ``alpha``, ``selector``.
        schedule: factor on all rates.
        ema_decay: decay of the moving average of the weights that validation and the result use; 0: off.
        autocast: type that convolutions compute in, or None for the weights' own.
        checkpoint_seconds: seconds between two resume states.
    """

    steps: int
    rates: Mapping[str, float]
    schedule: Schedule
    ema_decay: float = 0.0
    autocast: torch.dtype | None = None
    checkpoint_seconds: float = 60.0


@dataclass
class Progress:
    """What callbacks see after a step.

    Attributes:
        step: number of finished steps.
        parts: the loss's terms and the FAB of the batch.
        rate: factor of the schedule at this step.
        weights: state dict to validate: the average, if there is one.
        history: rows of the training curve, which callbacks may change and a resumed training keeps.
    """

    step: int
    parts: Mapping[str, float]
    rate: float
    weights: Mapping[str, Tensor]
    history: list[dict[str, Any]]


Callback = Callable[[Progress], None]


def parameter_group(name: str) -> str:
    """Return the parameter group of a parameter: ``alpha``, ``selector`` or ``weights``."""
    if name.endswith(".alpha"):
        return "alpha"
    return "selector" if ".selector." in name else "weights"


def train(
    model: Backbone,
    objective: Objective,
    sampler: Sampler,
    plan: TrainingPlan,
    *,
    callbacks: tuple[Callback, ...] = (),
    resume_file: Path | None = None,
    history: list[dict[str, Any]] | None = None,
    group: Group = ALONE,
) -> Backbone:
    """Train ``model`` in place and return it, with the averaged weights if averaging is on.

    A resumed training ends with the same bits as an uninterrupted one on the same machine and number of
    processes.

    Args:
        model: trained in place.
        objective: computes the loss; its ``shares`` are the group's processes.
        sampler: gives the batches, or this process's share of them.
        plan: settings of the loop.
        callbacks: called after every step, in every process.
        resume_file: path of the resume state, which only the leading process reads and writes.
        history: list that becomes `Progress.history`; a resumed training fills it, even if no step is left.
        group: the processes that train together. Their callbacks see the same parts and weights.

    Raises:
        TrainingDiverged: a loss or a weight is not finite; the last resume state stays.
        PeerLost: another process of the group ended or does not answer.
    """
    synchronise_batch_norm(model, group)
    average = Average(model, plan.ema_decay) if plan.ema_decay else None
    state = TrainingState(model, _optimizer(model, plan), average, 0, [] if history is None else history)
    _resume(state, resume_file, group)
    saved = time.monotonic()
    model.train()
    for step in range(state.step, plan.steps):
        factor = plan.schedule.factor(step, plan.steps)
        parts = _take_step(state, objective, sampler, plan, factor, group)
        progress = Progress(state.step, parts, factor, state.weights(), state.history)
        for callback in callbacks:
            callback(progress)
        due = time.monotonic() - saved >= plan.checkpoint_seconds
        if resume_file is not None and group.leads and due:
            resume.write(state, resume_file)
            saved = time.monotonic()
    if average is not None:
        model.load_state_dict(average.values)
    require_finite_weights(model)
    return model.eval()


def _resume(state: TrainingState, resume_file: Path | None, group: Group) -> None:
    """Restore the resume state, if there is one, and give all processes the leader's state."""
    content = None
    if resume_file is not None and group.leads:
        content = resume.read(resume_file, state)
    if group.size > 1:  # equal seeds do not give equal weights on different machines
        if group.leads and content is None:
            content = resume.pack(state)
        content = group.from_leader(content or b"")
    if content is not None:
        resume.restore(state, content)


def _take_step(
    state: TrainingState,
    objective: Objective,
    sampler: Sampler,
    plan: TrainingPlan,
    factor: float,
    group: Group,
) -> Mapping[str, float]:
    """Take one optimizer step, and return the parts of the whole batch's loss."""
    model, optimizer, step = state.model, state.optimizer, state.step
    for rated in optimizer.param_groups:
        rated["lr"] = plan.rates[rated["name"]] * factor
    low_resolution, high_resolution = sampler.batch(step)
    with _autocast(plan, low_resolution):
        loss, parts = objective(
            model,
            low_resolution.float().contiguous(memory_format=torch.channels_last),
            high_resolution.float(),
            step,
        )
    parts = group.mean(parts)
    _require_finite(parts, step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    group.average_gradients(list(model.parameters()))
    optimizer.step()
    _keep_alphas_positive(model)
    if state.average is not None:
        state.average.update(model, step)
    state.step += 1
    return parts


def _optimizer(model: Backbone, plan: TrainingPlan) -> torch.optim.Adam:
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(parameter_group(name), []).append(parameter)
    described = [
        {"params": parameters, "name": name, "lr": plan.rates[name]} for name, parameters in groups.items()
    ]
    return torch.optim.Adam(described, betas=(0.9, 0.999), fused=True)


def _autocast(plan: TrainingPlan, tensor: Tensor) -> AbstractContextManager[Any]:
    if plan.autocast is None:
        return nullcontext()
    return torch.autocast(tensor.device.type, plan.autocast)


def _require_finite(parts: Mapping[str, float], step: int) -> None:
    bad = [name for name, value in parts.items() if not math.isfinite(value)]
    if bad:
        raise TrainingDiverged(
            f"step {step + 1}: loss {', '.join(bad)} is not finite; lower the learning rate"
        )


def _keep_alphas_positive(model: Backbone) -> None:
    """Clamp clip values to at least `MIN_ALPHA`, because a step may make a small one negative."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter_group(name) == "alpha":
                parameter.clamp_(min=MIN_ALPHA)
