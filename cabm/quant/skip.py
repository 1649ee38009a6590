"""Skip connections of residual blocks."""

from __future__ import annotations

from torch import Tensor, nn

from cabm.quant.context import PrecisionContext
from cabm.quant.layers import PamsActivation, Quantized, values


class QuantizedSkip(nn.Module):
    """A skip connection on an 8-bit grid of its own.

    In the released models the skip connection carries the codes that the first convolution reads, so its
    precision falls with theirs. A byte per value costs no bit operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.act = PamsActivation()

    def forward(self, x: Tensor, read: Tensor | Quantized, context: PrecisionContext) -> Tensor:
        """Return the values of ``x`` (B,C,H,W) on the 8-bit grid; ``read`` is ignored."""
        return values(self.act(x, context))


class ReadSkip(nn.Module):
    """A skip connection that carries what the block's first convolution reads, as released."""

    def forward(self, x: Tensor, read: Tensor | Quantized, context: PrecisionContext) -> Tensor:
        """Return the values of ``read``; ``x`` is ignored."""
        return values(read)
