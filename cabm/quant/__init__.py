"""Fake quantization: the quantizers and convolutions that give a backbone its precision."""

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
