"""The backbones by name. To add one, add a line here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from cabm.errors import InputError, shown
from cabm.models.base import Backbone
from cabm.models.carn import CARN
from cabm.models.edsr import EDSR
from cabm.models.facts import MAX_OPTION
from cabm.models.idn import IDN
from cabm.models.srresnet import SRResNet
from cabm.quant import Precision

BACKBONES: dict[str, type[Backbone]] = {
    EDSR.name: EDSR,
    SRResNet.name: SRResNet,
    IDN.name: IDN,
    CARN.name: CARN,
}


def build_model(
    name: str, scale: int, precision: Precision, options: dict[str, Any] | None = None
) -> Backbone:
    """Build a backbone with fresh weights.

    Args:
        name: a key of `BACKBONES`.
        scale: upscaling factor.
        precision: how its quantized positions compute.
        options: further arguments of its constructor, such as ``num_features``.

    Raises:
        InputError: the name is unknown, or an option is unknown or has an unusable value.
    """
    if name not in BACKBONES:
        raise InputError(f"model.name: unknown backbone {name!r}; known are {', '.join(sorted(BACKBONES))}")
    options = options or {}
    _check_options(BACKBONES[name], options)
    try:
        return BACKBONES[name](scale, precision, **options)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:  # raised by PyTorch
        reason = str(error).splitlines()[0]
        raise InputError(f"model: {name} cannot be built with {options}: {reason}") from None


def _check_options(backbone: type[Backbone], options: Mapping[str, Any]) -> None:
    """Check names and types of options; each must have the type of the constructor's default."""
    arguments = inspect.signature(backbone).parameters
    kinds = {name: type(argument.default) for name, argument in arguments.items()}
    known = [name for name in kinds if name not in ("scale", "precision")]
    cannot = f"model: {backbone.name} cannot be built with"
    for option, value in options.items():
        if option not in known:
            raise InputError(f"{cannot} {option}; its options are {', '.join(known)}")
        kind = kinds[option]
        if kind is bool:
            fits, wanted = isinstance(value, bool), "true or false"
        else:
            number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
            fits = number and 0 <= value <= MAX_OPTION
            wanted = f"a {'whole ' if kind is int else ''}number up to {MAX_OPTION}"
        if not fits:
            raise InputError(f"{cannot} {option} {shown(value)}; give {wanted}")
