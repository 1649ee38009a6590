"""Fake quantization: what a backbone is given so that it computes at some precision."""

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
