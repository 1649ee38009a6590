"""Super-resolution backbones by name, and the transfer of weights between them."""

from __future__ import annotations

from cabm.models.base import Backbone, QuantizedLayer, SROutput
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
