"""The one training loop of all steps, and its resume state."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cabm.data.patches import Sampler
from cabm.errors import TrainingDiverged
from cabm.files import atomic_write
from cabm.models.base import Backbone
from cabm.project.schedule import Schedule
from cabm.quant import AlphaObserver
from cabm.training.distributed import ALONE, Group
from cabm.training.losses import Objective


@dataclass(frozen=True)
class TrainingPlan:
    """What the loop does, apart from model, data and loss.

    Attributes:
        steps: number of optimizer steps.
        rates: learning rate per parameter group: ``weights``, ``alpha``, ``selector``.
        schedule: common factor on the rates.
        ema_decay: of the running average of the weights that validation and the result use; 0: off.
        autocast: type that convolutions compute in, or None for the weights' own.
        checkpoint_seconds: how often the resume state is written.
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
        step: steps done, from 1.
        parts: the loss's parts and the fab of the batch.
        rate: factor of the schedule at this step.
        weights: the state dict that validation should load: the average, where there is one.
        history: records of earlier validations; a callback may append, and it survives a resume.
    """

    step: int
    parts: Mapping[str, float]
    rate: float
    weights: Mapping[str, Tensor]
    history: list[dict[str, Any]]


Callback = Callable[[Progress], None]
Calibration = Literal["peak", "error"]
MIN_ALPHA = 1e-6


def parameter_group(name: str) -> str:
    """Return which learning rate a parameter takes: ``alpha``, ``selector`` or ``weights``."""
    if name.endswith(".alpha"):
        return "alpha"
    return "selector" if ".selector." in name else "weights"


class _Average:
    """Exponential moving average of parameters and float buffers, in their own type."""

    def __init__(self, model: Backbone, decay: float) -> None:
        self.decay = decay
        self.values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def update(self, model: Backbone, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # young averages follow the weights
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.values[name].lerp_(tensor, 1 - decay)
            else:
                self.values[name].copy_(tensor)


def calibrate(
    model: Backbone,
    sampler: Sampler,
    batches: int,
    only: set[str] | None = None,
    method: Calibration = "peak",
) -> dict[str, list[float]]:
    """Set clip values alpha from data.

    Args:
        model: a quantized model; runs unquantized activations meanwhile.
        sampler: where batches come from.
        batches: how many of them.
        only: names of the alpha parameters to set; all by default.
        method: ``peak``, the mean over samples of max|x| for every width (PAMS; METHOD section 1);
            ``error``, for each width the value of least squared quantization error.

    Returns:
        The values by parameter name, one per width.

    Raises:
        TrainingDiverged: an activation is zero or not finite on all batches.
    """
    observer = AlphaObserver()
    with torch.no_grad():
        for step in range(batches):
            model(sampler.batch(step)[0].float(), observer=observer)
    found = {}
    names = {module: f"{name}.alpha" for name, module in model.named_modules()}
    for quantizer in observer.modules():
        name = names[quantizer]
        if only is not None and name not in only:
            continue
        peak = observer.mean_peak(quantizer)
        if not math.isfinite(peak) or peak <= MIN_ALPHA:
            raise TrainingDiverged(f"calibration of {name}: mean max|x| is {peak}")
        alphas = [
            peak if method == "peak" else max(MIN_ALPHA, observer.least_error_alpha(quantizer, levels))
            for levels in quantizer.levels.tolist()
        ]
        with torch.no_grad():
            quantizer.alpha.copy_(torch.tensor(alphas))
        found[name] = alphas
    return found


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
    """Train ``model`` in place and return it with the averaged weights, if averaging is on.

    The result is the same to the bit whether or not the run was interrupted, on one machine with the same
    number of processes.

    Args:
        model: trained in place.
        objective: gives the loss; its ``shares`` are the group's processes.
        sampler: gives the batches; with a group, this process's share of them.
        plan: what the loop does.
        callbacks: called after every step, in every process.
        resume_file: where the state is kept; only the leading process reads and writes it.
        history: what callbacks see as `Progress.history`; that of a run that is continued is put into it,
            also where no step is left.
        group: the processes that train together. Their callbacks see the same parts and weights.

    Raises:
        TrainingDiverged: a loss or a weight is not finite; no state is written from then on.
        PeerLost: another process of the group ended or does not answer.
    """
    group.synchronise_batch_norm(model)
    parameters = list(model.parameters())
    optimizer = _optimizer(model, plan)
    average = _Average(model, plan.ema_decay) if plan.ema_decay else None
    first, history = 0, [] if history is None else history
    content = None
    if resume_file is not None and group.leads:
        content = _read(resume_file, model, optimizer, average)
    if group.size > 1:  # all start from the leader's state: seeds do not bind other machines' arithmetic
        if group.leads and content is None:
            content = _pack(0, history, model, optimizer, average)
        content = group.from_leader(content or b"")
    if content is not None:
        first, history[:] = _restore(content, model, optimizer, average)
    saved = time.monotonic()
    model.train()
    for step in range(first, plan.steps):
        factor = plan.schedule.factor(step, plan.steps)
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
        group.average_gradients(parameters)
        optimizer.step()
        _keep_alphas_positive(model)
        if average is not None:
            average.update(model, step)
        weights = model.state_dict() if average is None else average.values
        progress = Progress(step + 1, parts, factor, weights, history)
        for callback in callbacks:
            callback(progress)
        due = time.monotonic() - saved >= plan.checkpoint_seconds
        if resume_file is not None and group.leads and due:
            with atomic_write(resume_file) as temporary:
                temporary.write_bytes(_pack(step + 1, history, model, optimizer, average))
            saved = time.monotonic()
    if average is not None:
        model.load_state_dict(average.values)
    _require_finite_weights(model)
    return model.eval()


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
    """Hold clip values above zero: a step may carry a small one across, and alpha <= 0 means nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter_group(name) == "alpha":
                parameter.clamp_(min=MIN_ALPHA)


def _require_finite_weights(model: Backbone) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise TrainingDiverged(f"{name} has values that are not finite; lower the learning rate")


RESUME_FORMAT = "cabm.resume/1"


def _pack(
    step: int,
    history: list[dict[str, Any]],
    model: Backbone,
    optimizer: torch.optim.Adam,
    average: _Average | None,
) -> bytes:
    """Return everything that the next step depends on, as the bytes of one safetensors file.

    Raises:
        TrainingDiverged: a weight is not finite; the state of before stays.
    """
    _require_finite_weights(model)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.values.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    metadata = {"format": RESUME_FORMAT, "step": str(step), "history": json.dumps(history)}
    return save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)


def _unpack(content: bytes) -> tuple[int, list[dict[str, Any]], dict[str, Tensor]]:
    """Return step, history and tensors of what `_pack` returned."""
    tensors = load_tensors(content)
    header_size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + header_size])["__metadata__"]
    return int(metadata["step"]), json.loads(metadata["history"]), tensors


def _read(
    path: Path, model: Backbone, optimizer: torch.optim.Adam, average: _Average | None
) -> bytes | None:
    """Return the resume state, None where there is none; a damaged one starts the run over: only time."""
    try:
        content = path.read_bytes()
        _check_state(_unpack(content)[2], model, _parameters(optimizer), average)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError):
        path.unlink()
        return None
    return content


def _restore(
    content: bytes, model: Backbone, optimizer: torch.optim.Adam, average: _Average | None
) -> tuple[int, list[dict[str, Any]]]:
    """Restore what `_pack` returned, and return the step and the history."""
    step, history, tensors = _unpack(content)
    model.load_state_dict(_part(tensors, "model."))
    if average is not None:
        for name, value in _part(tensors, "average.").items():
            average.values[name].copy_(value)
    parameters = _parameters(optimizer)
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _part(tensors, "optimizer.").items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # the fused kernel walks parameter and state in memory order, so their layouts must agree
            tensor = torch.empty_like(parameter).copy_(tensor)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step, history


def _parameters(optimizer: torch.optim.Adam) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _check_state(
    tensors: Mapping[str, Tensor], model: Backbone, parameters: list[Tensor], average: _Average | None
) -> None:
    """Raise ValueError where tensors are not the whole state of this model and its optimizer."""
    weights = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    expected = {f"model.{name}": kind for name, kind in weights.items()}
    if average is not None:
        expected |= {f"average.{name}": kind for name, kind in weights.items()}
    for index, parameter in enumerate(parameters):
        moments = (parameter.shape, parameter.dtype)
        expected[f"optimizer.{index}.step"] = (torch.Size([]), torch.float32)
        expected |= {f"optimizer.{index}.{name}": moments for name in ("exp_avg", "exp_avg_sq")}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    unused = {f"optimizer.{index}" for index in range(len(parameters))} - {
        name.rsplit(".", 1)[0] for name in found
    }  # parameters that have had no gradient have no moments
    expected = {name: kind for name, kind in expected.items() if name.rsplit(".", 1)[0] not in unused}
    if found != expected:
        raise ValueError("another model's state")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError("numbers that are not finite")
