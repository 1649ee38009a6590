"""Fake quantization: the quantizers and convolutions that give a backbone its precision."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cabm.quant.context import AlphaObserver, PrecisionContext
    from cabm.quant.layers import Quantized, values
    from cabm.quant.precision import KINDS, Kind, Precision, Quantizers

__all__ = [
    "KINDS",
    "AlphaObserver",
    "Kind",
    "Precision",
    "PrecisionContext",
    "Quantized",
    "Quantizers",
    "values",
]

_MODULES = {
    "context": ("AlphaObserver", "PrecisionContext"),
    "layers": ("Quantized", "values"),
    "precision": ("KINDS", "Kind", "Precision", "Quantizers"),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `cabm.quant.levels` does without PyTorch."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
