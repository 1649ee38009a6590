"""How the quantized positions of a backbone compute: `Precision`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cabm.errors import InputError

Kind = Literal["float", "pams", "cadyq", "cabm"]
KINDS: tuple[Kind, ...] = ("float", "pams", "cadyq", "cabm")


@dataclass(frozen=True)
class Precision:
    """How the quantized positions of a backbone compute.

    Attributes:
        kind: float, pams (8 bits, learned clip values), cadyq (a bit selector per position) or cabm (bits
            from a table).
        search_space: widths of adaptive positions, ascending, each 2..8.
        weight_bits: width of the weights that read an adaptive position, 2..8, or "same" as the activation.
        quantize_ends: quantize the convolutions outside the body to 8 bits, too: head, tail and fusion.
        skip: the skip connections of residual blocks: on an 8-bit grid of their own, or "quantized", the
            codes that the block's first convolution reads.
        after_relu: codes of positions behind a ReLU: "unsigned" 0..2^b - 1, or "symmetric", which leaves
            the negative half unused.
        weight_granularity: one scale of the weights per output channel, or per tensor.

    The defaults of skip, after_relu and weight_granularity are those of the released code, which published
    checkpoints need.

    Raises:
        InputError: the search space is empty, not ascending, or has widths outside 2..8.
    """

    kind: Kind = "float"
    search_space: tuple[int, ...] = (4, 6, 8)
    weight_bits: int | Literal["same"] = 8
    quantize_ends: bool = False
    skip: Literal[8, "quantized"] = "quantized"
    after_relu: Literal["unsigned", "symmetric"] = "symmetric"
    weight_granularity: Literal["channel", "tensor"] = "tensor"

    def __post_init__(self) -> None:
        widths = list(self.search_space)
        ascending = bool(widths) and widths == sorted(set(widths))
        if not ascending or not 2 <= widths[0] <= widths[-1] <= 8:
            raise InputError(f"search space {widths}: list ascending widths of 2..8 bits, each once")
