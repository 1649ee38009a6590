"""Compile a trained model for the CPU's integer units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cabm.engine import elementwise, onednn
from cabm.engine.building import carn, edsr, idn, srresnet
from cabm.engine.ends import Ends, fastest
from cabm.engine.fused import kernel_for
from cabm.engine.integer import IntegerModel
from cabm.engine.programs import Program
from cabm.errors import InputError
from cabm.models.base import Backbone
from cabm.models.srresnet import SRResNet

# one line per backbone
PROGRAMS: dict[str, Callable[[Any, Ends], Program]] = {
    "edsr": edsr.program,
    "srresnet": srresnet.program,
    "idn": idn.program,
    "carn": carn.program,
}


def compile_model(model: Backbone, *, float_dtype: torch.dtype | None = None) -> IntegerModel:
    """Compile a trained model for this machine's integer units.

    Args:
        model: a quantized backbone on the CPU with calibrated clip values. CADyQ models run at given
            bits; their bit selectors are not used. It must not change afterwards.
        float_dtype: type of the float convolutions after the quantized ones; default: the fastest on this
            CPU, see `cabm.engine.ends`.

    Raises:
        InputError: the model or this machine is not supported; see `supports`.
    """
    reason = supports(model)
    if reason is not None:
        raise InputError(f"engine int8: {reason}; use engine float or auto")
    elementwise.compiled()  # before threads need it
    with torch.no_grad():
        ends = fastest() if float_dtype is None else Ends(float_dtype)
        return IntegerModel(PROGRAMS[model.name](model.eval(), ends), model.facts)


def supports(model: Backbone) -> str | None:
    """Return one line on why a model cannot run in integer arithmetic here, or None if it can."""
    reason = why_not(model)
    if reason is not None:
        return reason
    device = next(model.parameters()).device.type
    if device != "cpu":
        return f"the integer engine runs on the CPU, the model is on {device}"
    if kernel_for(model) is not None:
        return None
    ok, reason = onednn.available()
    return None if ok else reason


def why_not(model: Backbone) -> str | None:
    """Return one line on why a model has no integer form on any machine, or None if it has one."""
    precision = model.precision
    if precision.kind == "float":
        return "a float model has no quantized layers"
    if model.name not in PROGRAMS:
        return f"backbone {model.name} has no integer program"
    if precision.quantize_ends:
        return "quantized heads and tails have no integer program"
    if isinstance(model, SRResNet) and model.options["release_graph"]:
        return "the released graph of srresnet convolves inputs that are not quantized"
    return None
