"""Everything the next training step depends on, and the resume state that stores it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cabm.errors import TrainingDiverged
from cabm.files import atomic_write
from cabm.models.base import Backbone

FORMAT = "cabm.resume/2"
OLD_FORMAT = "cabm.resume/1"  # had no checksum
_BLANK = "0" * 64  # stands for the checksum while it is computed

logger = logging.getLogger(__name__)


class Average:
    """Exponential moving average of parameters and float buffers, in their own type."""

    def __init__(self, model: Backbone, decay: float) -> None:
        self.decay = decay
        self.values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def update(self, model: Backbone, step: int) -> None:
        """Add the weights after ``step``, which counts from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))  # a young average follows the weights
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.values[name].lerp_(tensor, 1 - decay)
            else:
                self.values[name].copy_(tensor)


@dataclass
class TrainingState:
    """The state of a training between two steps.

    Attributes:
        model: the model in training.
        optimizer: its optimizer.
        average: moving average of the weights, if there is one.
        step: number of finished steps.
        history: rows of the training curve.
    """

    model: Backbone
    optimizer: torch.optim.Adam
    average: Average | None = None
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def weights(self) -> Mapping[str, Tensor]:
        """Return the state dict to validate and to keep: the average, or else the model's own."""
        return self.model.state_dict() if self.average is None else self.average.values

    def parameters(self) -> list[Tensor]:
        """Return the parameters in the optimizer's order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def write(state: TrainingState, path: Path) -> None:
    """Write the resume state.

    Raises:
        TrainingDiverged: a weight is not finite; the file stays as it is.
    """
    content = pack(state)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def read(path: Path, state: TrainingState) -> bytes | None:
    """Return the bytes of a resume state that fits ``state``, or None if there is none.

    A file that is damaged or belongs to another model is deleted with a warning: the training starts over.
    """
    try:
        content = path.read_bytes()
        _check_fit(_unpack(content)[2], state)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        logger.warning("%s: resume state damaged, starting over (%s)", path, reason)
        path.unlink()
        return None
    return content


def pack(state: TrainingState) -> bytes:
    """Return the state as the bytes of one safetensors file, with a checksum over all of them.

    Raises:
        TrainingDiverged: a weight is not finite.
    """
    require_finite_weights(state.model)
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    if state.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in state.average.values.items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    metadata = {
        "format": FORMAT,
        "step": str(state.step),
        "history": json.dumps(state.history),
        "sha256": _BLANK,
    }
    content = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    header, body = _split(content)
    header = header.replace(_entry(_BLANK), _entry(_digest(header, body)))
    return b"".join((content[:8], header, body))


def restore(state: TrainingState, content: bytes) -> None:
    """Put the bytes of `pack` into the model, the optimizer and the average of ``state``."""
    state.step, state.history[:], tensors = _unpack(content)
    state.model.load_state_dict(_part(tensors, "model."))
    if state.average is not None:
        for name, value in _part(tensors, "average.").items():
            state.average.values[name].copy_(value)
    parameters = state.parameters()
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _part(tensors, "optimizer.").items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # the fused kernel walks parameter and moments in memory order, so their layouts must agree
            tensor = torch.empty_like(parameter).copy_(tensor)
        moments.setdefault(int(index), {})[name] = tensor
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def require_finite_weights(model: Backbone) -> None:
    """Raise `TrainingDiverged` if a weight is not finite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise TrainingDiverged(f"{name} has values that are not finite; lower the learning rate")


def _unpack(content: bytes) -> tuple[int, list[dict[str, Any]], dict[str, Tensor]]:
    """Return step, history and tensors of a resume state.

    Raises:
        ValueError: the checksum does not match, or is missing from a file of the present format.
        SafetensorError, KeyError, TypeError, RecursionError: this is not a resume state.
    """
    tensors = load_tensors(content)
    header, body = _split(content)
    metadata = json.loads(header)["__metadata__"]
    if not isinstance(metadata, dict):  # JSON's null passes for safetensors
        raise ValueError("the metadata is missing")
    checksum = metadata.get("sha256")
    if checksum is None and metadata["format"] != OLD_FORMAT:
        raise ValueError("the checksum is missing")
    if checksum is not None and _digest(header.replace(_entry(checksum), _entry(_BLANK)), body) != checksum:
        raise ValueError("the checksum does not match")
    return int(metadata["step"]), json.loads(metadata["history"]), tensors


def _split(content: bytes) -> tuple[bytes, memoryview]:
    """Return header (JSON) and tensor bytes of a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end], memoryview(content)[end:]


def _entry(checksum: str) -> bytes:
    return f'"sha256":"{checksum}"'.encode()


def _digest(header: bytes, body: memoryview) -> str:
    digest = hashlib.sha256(header)
    digest.update(body)
    return digest.hexdigest()


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _check_fit(tensors: Mapping[str, Tensor], state: TrainingState) -> None:
    """Raise ValueError unless the tensors are the whole state of this model and its optimizer."""
    parameters = state.parameters()
    weights = {name: (tensor.shape, tensor.dtype) for name, tensor in state.model.state_dict().items()}
    expected = {f"model.{name}": kind for name, kind in weights.items()}
    if state.average is not None:
        expected |= {f"average.{name}": kind for name, kind in weights.items()}
    for index, parameter in enumerate(parameters):
        moments = (parameter.shape, parameter.dtype)
        expected[f"optimizer.{index}.step"] = (torch.Size([]), torch.float32)
        expected |= {f"optimizer.{index}.{name}": moments for name in ("exp_avg", "exp_avg_sq")}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    # a parameter that never had a gradient has no moments
    unused = {f"optimizer.{index}" for index in range(len(parameters))} - {
        name.rsplit(".", 1)[0] for name in found
    }
    expected = {name: kind for name, kind in expected.items() if name.rsplit(".", 1)[0] not in unused}
    if found != expected:
        raise ValueError("it belongs to another model")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError("it has values that are not finite")
