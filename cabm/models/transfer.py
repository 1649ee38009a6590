"""Transfer of weights from the model of one training step to that of a later one."""

from __future__ import annotations

import torch

from cabm.errors import InputError
from cabm.models.base import Backbone

STARTS_FROM = {
    "float": ("float",),
    "pams": ("float", "pams"),
    "cadyq": ("float", "pams", "cadyq"),
    "cabm": ("float", "pams", "cadyq", "cabm"),
}
"""The kinds that each kind can start from, in the order of the training steps (CABM, section 3)."""


def transfer_weights(source: Backbone, target: Backbone) -> list[str]:
    """Load the weights of ``source`` into ``target``, a model of the same or a later step.

    Parameters and buffers of the same name are copied. The only exceptions:

    - The alpha (1,) of a PAMS quantizer becomes the alpha of every width (K,).
    - A quantizer that ``source`` does not have keeps its initial alpha, which must be calibrated.
    - A selector that ``source`` does not have keeps its initial weights, which select the widest.
    - Selectors are dropped if ``target`` takes its bits from a table.

    Returns:
        Names of the alpha parameters that were not set, in the order of the model.

    Raises:
        InputError: backbone, scale, search space or tensors differ, or the kind of ``target`` cannot start
            from that of ``source``. ``target`` is then unchanged.
    """
    _check_compatible(source, target)
    given, wanted = source.state_dict(), target.state_dict()
    loaded: dict[str, torch.Tensor] = {}
    uncalibrated: list[str] = []
    problems: list[str] = []
    for name, fresh in wanted.items():
        value = given.pop(name, None)
        if value is None and name.endswith("alpha"):
            uncalibrated.append(name)
        elif value is None and ".selector." not in name:
            problems.append(f"{name} is missing")
        elif value is not None and name.endswith("alpha") and value.shape == (1,):
            value = value.expand_as(fresh)
        elif value is not None and value.shape != fresh.shape:
            problems.append(f"{name} is {_shape(value)}, expected {_shape(fresh)}")
        loaded[name] = fresh if value is None else value
    if target.precision.kind == "cabm":
        given = {name: value for name, value in given.items() if ".selector." not in name}
    problems += [f"{name} is not known" for name in given]
    if problems:
        raise InputError(
            f"weights of a {_label(source)} do not fit a {_label(target)}: {'; '.join(problems)}; "
            "use a checkpoint with the same model options"
        )
    target.load_state_dict(loaded)
    return uncalibrated


def _check_compatible(source: Backbone, target: Backbone) -> None:
    if (source.name, source.scale) != (target.name, target.scale):
        raise InputError(
            f"weights of {source.name} x{source.scale} cannot start {target.name} x{target.scale}; "
            "backbone and scale must be the same"
        )
    old, new = source.precision, target.precision
    if old.kind not in STARTS_FROM[new.kind]:
        raise InputError(
            f"a {new.kind} model cannot start from {old.kind} weights; "
            f"give one of {', '.join(STARTS_FROM[new.kind])}"
        )
    searched = ("cadyq", "cabm")
    if old.kind in searched and new.kind in searched and old.search_space != new.search_space:
        raise InputError(
            f"weights of search space {list(old.search_space)} cannot start one of "
            f"{list(new.search_space)}; the clip values belong to their widths"
        )


def _label(model: Backbone) -> str:
    return f"{model.precision.kind} {model.name} x{model.scale}"


def _shape(value: torch.Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a scalar"
