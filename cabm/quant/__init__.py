"""Fake quantization: the quantizers and convolutions that give a backbone its precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cabm.machine.lazy import imports_on_use

if TYPE_CHECKING:
    from cabm.quant.context import AlphaObserver, PrecisionContext
    from cabm.quant.kinds import KINDS, Kind, Precision
    from cabm.quant.layers import Quantized, values
    from cabm.quant.precision import Quantizers

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

__getattr__ = imports_on_use(
    __name__,
    {
        "AlphaObserver": "cabm.quant.context",
        "KINDS": "cabm.quant.kinds",
        "Kind": "cabm.quant.kinds",
        "Precision": "cabm.quant.kinds",
        "PrecisionContext": "cabm.quant.context",
        "Quantized": "cabm.quant.layers",
        "Quantizers": "cabm.quant.precision",
        "values": "cabm.quant.layers",
    },
)
