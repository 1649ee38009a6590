"""What one forward pass carries past the quantizers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


class AlphaObserver:
    """Collects the calibration statistic of alpha over batches.

    PAMS calibrates alpha as the mean over samples of max|x|, on inputs that pass unclipped
    (METHOD section 1). Keyed by quantizer module, so that nothing is stored in the modules.
    """

    def __init__(self) -> None:
        self._sums: dict[nn.Module, tuple[Tensor, int]] = {}

    def record(self, quantizer: nn.Module, x: Tensor) -> None:
        """Add the per-sample max|x| of a batch (B,C,H,W)."""
        peaks = x.detach().abs().amax(dim=(1, 2, 3)).double()
        total, count = self._sums.get(quantizer, (torch.zeros((), dtype=torch.float64), 0))
        self._sums[quantizer] = (total + peaks.sum().cpu(), count + peaks.numel())

    def means(self) -> dict[nn.Module, float]:
        """Return the mean max|x| of each quantizer that was reached."""
        return {module: float(total) / count for module, (total, count) in self._sums.items()}


@dataclass
class PrecisionContext:
    """One per forward pass: what the quantizers need, and what they report.

    Attributes:
        gradient: (B,2) mean |Sobel| of the input in x and y, for selectors.
        bits: (B,L) assigned bits, for tables.
        observer: when given, quantizers pass their input unquantized and report it here.
        chosen: per adaptive position, the bits (B,) that were used.
        bit_cost: per adaptive position, bits_ST / sg(expected bits) (B,), the terms of the bit loss.
    """

    gradient: Tensor | None = None
    bits: Tensor | None = None
    observer: AlphaObserver | None = None
    chosen: list[Tensor] = field(default_factory=list)
    bit_cost: list[Tensor] = field(default_factory=list)
