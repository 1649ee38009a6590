"""Super-resolution backbones by name, and the transfer of weights between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cabm.machine.lazy import imports_on_use

if TYPE_CHECKING:
    from cabm.models.base import Backbone, SROutput
    from cabm.models.facts import QuantizedLayer
    from cabm.models.registry import BACKBONES, build_model
    from cabm.models.transfer import transfer_weights

__all__ = [
    "BACKBONES",
    "Backbone",
    "QuantizedLayer",
    "SROutput",
    "build_model",
    "transfer_weights",
]

__getattr__ = imports_on_use(
    __name__,
    {
        "BACKBONES": "cabm.models.registry",
        "Backbone": "cabm.models.base",
        "QuantizedLayer": "cabm.models.facts",
        "SROutput": "cabm.models.base",
        "build_model": "cabm.models.registry",
        "transfer_weights": "cabm.models.transfer",
    },
)
