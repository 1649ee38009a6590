"""How the float convolutions before and behind the quantized ones run on this CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cabm.engine import byte_rows, float_rows
from cabm.engine.float_rows import Layer, Rows
from cabm.engine.float_tail import FloatTail, pack_tail
from cabm.machine.cpu import cpu_multiplies_bfloat16


@dataclass(frozen=True)
class Ends:
    """How float convolutions are computed.

    Attributes:
        dtype: type of those that run one by one, float32 or bfloat16.
        in_bytes: whether several at once may run on bytes, where AMX cannot run them in bfloat16.
    """

    dtype: torch.dtype
    in_bytes: bool = False

    def rows(self, layers: Sequence[Layer]) -> Rows | FloatTail | None:
        """Return convolutions as compiled code; None if this CPU or their shapes rule that out."""
        found: Rows | FloatTail | None = float_rows.rows(layers, bfloat16=self.dtype == torch.bfloat16)
        if found is None and self.in_bytes:
            found = byte_rows.rows(layers)
        return pack_tail(layers) if found is None and self.dtype == torch.float32 else found


def fastest() -> Ends:
    """Return what is fastest on this CPU."""
    return Ends(torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32, in_bytes=True)
