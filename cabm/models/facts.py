"""What a backbone states about itself, without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cabm.quant.kinds import Precision

MAX_OPTION = 4096
"""Largest number in a model's options, far above any published network.

Without it, an untrusted file could ask for all memory.
"""


@dataclass(frozen=True)
class QuantizedLayer:
    """A convolution of a backbone and its cost.

    Attributes:
        name: module path of the convolution.
        macs_per_pixel: multiply-accumulate operations per low-resolution pixel.
        adaptive: whether the bits of its input come from the search space. Adaptive layers are in the order
            of a table's columns.
        fixed_bits: width of its input if it is not adaptive: 8, or 32 for float.
    """

    name: str
    macs_per_pixel: int
    adaptive: bool
    fixed_bits: int = 32


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model without its weights.

    Attributes:
        name: of its backbone.
        scale: scale factor.
        precision: how its quantized positions compute.
        layers: its convolutions, in the order of execution.
        size_multiple, receptive_field: see `cabm.models.base.Backbone`.
    """

    name: str
    scale: int
    precision: Precision
    layers: tuple[QuantizedLayer, ...]
    size_multiple: int
    receptive_field: int

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the adaptive layers, in the order of the table's columns."""
        return tuple(layer.name for layer in self.layers if layer.adaptive)

    @property
    def num_adaptive(self) -> int:
        """Number of adaptive positions, L."""
        return len(self.layer_names)

    @property
    def table_fit(self) -> dict[str, Any]:
        """Arguments for `cabm.tables.table.EdgeToBitTable.check`, to compare a table with this model."""
        return {
            "backbone": self.name,
            "scale": self.scale,
            "layers": self.layer_names,
            "search_space": self.precision.search_space,
        }
