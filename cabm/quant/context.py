"""What one forward pass carries past the quantizers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

SAMPLES_PER_BATCH = 4096
# candidates for alpha as shares of the largest magnitude; fine enough that the error is flat between them
CANDIDATES = 100


class AlphaObserver:
    """Collects the calibration statistics of alpha over batches.

    PAMS calibrates alpha as the mean over samples of max|x|, on inputs that pass unclipped
    (METHOD section 1). For few bits that is far too wide, so magnitudes are sampled as well, to choose the
    alpha of least squared error. Keyed by quantizer module: nothing is stored in the modules.
    """

    def __init__(self) -> None:
        self._peaks: dict[nn.Module, list[Tensor]] = {}
        self._samples: dict[nn.Module, list[Tensor]] = {}

    def record(self, quantizer: nn.Module, x: Tensor) -> None:
        """Add the per-sample max|x| of a batch (B,C,H,W) and an even sample of its magnitudes."""
        magnitudes = x.detach().abs()
        self._peaks.setdefault(quantizer, []).append(magnitudes.amax(dim=(1, 2, 3)).double().cpu())
        flat = magnitudes.flatten()
        # an odd stride does not fall into step with channels or rows
        stride = max(1, flat.numel() // SAMPLES_PER_BATCH) | 1
        self._samples.setdefault(quantizer, []).append(flat[::stride].float().cpu())

    def modules(self) -> list[nn.Module]:
        """Return the quantizers that were reached, in the order of their first record."""
        return list(self._peaks)

    def mean_peak(self, quantizer: nn.Module) -> float:
        """Return the mean over samples of max|x| (PAMS)."""
        return torch.cat(self._peaks[quantizer]).mean().item()

    def least_error_alpha(self, quantizer: nn.Module, levels: float) -> float:
        """Return the clip value of least mean squared quantization error at n = ``levels``.

        A scan over shares of the largest magnitude seen; the error has a single flat minimum.
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
    """One per forward pass: what the quantizers need, and what they report.

    Attributes:
        gradient: (B,2) mean |Sobel| of the input in x and y, for selectors.
        bits: (B,L) assigned bits, for tables.
        observer: when given, quantizers pass their input unquantized and report it here.
        chosen: per adaptive position, the bits (B,) that were used.
        expected: per adaptive position, the expectation (B,) of the bits over the selector's widths, with
            gradient.
    """

    gradient: Tensor | None = None
    bits: Tensor | None = None
    observer: AlphaObserver | None = None
    chosen: list[Tensor] = field(default_factory=list)
    expected: list[Tensor] = field(default_factory=list)

    def report(self, used: Tensor, expected: Tensor | None = None) -> None:
        """Add the bits (B,) that the next adaptive position used, and their expectation (B,)."""
        self.chosen.append(used)
        if expected is not None:
            self.expected.append(expected)

    def bit_cost(self) -> Tensor | None:
        """Return bits_ST / sg(expected bits) (B,L), the terms of the bit loss; None without selectors."""
        if not self.expected:
            return None
        expected, used = torch.stack(self.expected, dim=1), torch.stack(self.chosen, dim=1)
        straight_through = expected + (used - expected).detach()
        return straight_through / expected.detach()
