"""Inputs and reports of the quantizers during one forward pass, and the calibration of clip values."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

SAMPLES_PER_BATCH = 4096
CANDIDATES = 100
"""Number of clip values that are tried, evenly spaced up to the largest magnitude seen.

The error is flat between neighbours.
"""


class AlphaObserver:
    """Collects statistics of activations over batches, to set the clip values alpha.

    PAMS sets alpha to the mean over samples of max|x|, measured on unquantized activations. That is far too
    wide for few bits, so magnitudes are sampled as well, to find the alpha of least squared error. The
    statistics are kept here by quantizer, not in the modules.
    """

    def __init__(self) -> None:
        self._peaks: dict[nn.Module, list[Tensor]] = {}
        self._samples: dict[nn.Module, list[Tensor]] = {}

    def record(self, quantizer: nn.Module, x: Tensor) -> None:
        """Add the max|x| of each sample of (B,C,H,W), and magnitudes at even distances."""
        magnitudes = x.detach().abs()
        self._peaks.setdefault(quantizer, []).append(magnitudes.amax(dim=(1, 2, 3)).double().cpu())
        flat = magnitudes.flatten()
        # an odd stride does not visit the same channels or rows only
        stride = max(1, flat.numel() // SAMPLES_PER_BATCH) | 1
        self._samples.setdefault(quantizer, []).append(flat[::stride].float().cpu())

    def modules(self) -> list[nn.Module]:
        """Return the recorded quantizers in the order of execution."""
        return list(self._peaks)

    def mean_peak(self, quantizer: nn.Module) -> float:
        """Return the mean over samples of max|x| (PAMS)."""
        return torch.cat(self._peaks[quantizer]).mean().item()

    def least_error_alpha(self, quantizer: nn.Module, levels: float) -> float:
        """Return the clip value of least mean squared quantization error for the largest code ``levels``.

        All `CANDIDATES` are tried; the error has a single flat minimum.
        """
        magnitudes = torch.cat(self._samples[quantizer])
        largest = magnitudes.max()
        shares = torch.linspace(1 / CANDIDATES, 1, CANDIDATES)
        errors = []
        for alpha in largest * shares:
            clipped = magnitudes.clamp(max=alpha)
            errors.append(
                (torch.round(clipped * (levels / alpha)) * (alpha / levels) - magnitudes).square().mean()
            )
        return (largest * shares[torch.stack(errors).argmin()]).item()


@dataclass
class PrecisionContext:
    """What the quantizers read and report during one forward pass.

    Attributes:
        gradient: (B,2) mean |Sobel gradient| of the input in x and y; for selectors.
        bits: (B,L) widths from a table.
        observer: if given, quantizers record their input here and pass it on unquantized.
        chosen: the bits (B,) used at each adaptive position.
        expected: the expected bits (B,) at each adaptive position by the selector's probabilities, with
            gradient.
    """

    gradient: Tensor | None = None
    bits: Tensor | None = None
    observer: AlphaObserver | None = None
    chosen: list[Tensor] = field(default_factory=list)
    expected: list[Tensor] = field(default_factory=list)

    def report(self, used: Tensor, expected: Tensor | None = None) -> None:
        """Add the bits (B,) used at the next adaptive position, and their expectation (B,)."""
        self.chosen.append(used)
        if expected is not None:
            self.expected.append(expected)

    def bit_cost(self) -> Tensor | None:
        """Return the terms (B,L) of CADyQ's bit loss, None without selectors.

        A term is bits / expected bits. The straight-through bits have the gradient of the expectation; the
        denominator has none.
        """
        if not self.expected:
            return None
        expected, used = torch.stack(self.expected, dim=1), torch.stack(self.chosen, dim=1)
        straight_through = expected + (used - expected).detach()
        return straight_through / expected.detach()
