"""Backbones, by name: a new one is a line here."""

from __future__ import annotations

from typing import Any

from cabm.errors import InputError
from cabm.models.base import Backbone
from cabm.models.carn import CARN
from cabm.models.edsr import EDSR
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
        scale: enlargement.
        precision: what its quantized positions compute at.
        options: further constructor arguments, such as ``num_features``.

    Raises:
        InputError: unknown name, or an option that this backbone does not have.
    """
    if name not in BACKBONES:
        raise InputError(f"model.name: unknown backbone {name!r}; known are {', '.join(sorted(BACKBONES))}")
    try:
        return BACKBONES[name](scale, precision, **(options or {}))
    except TypeError as error:
        raise InputError(f"model: {name} cannot be built with {options}: {error}") from None
