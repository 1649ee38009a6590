"""What upscales a batch of tiles."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from cabm.models.base import Backbone


class TileRunner(Protocol):
    """Something that upscales a batch of tiles: a simulated model or the integer engine."""

    scale: int

    def __call__(self, tiles: Tensor, bits: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Upscale (n,3,h,w) in 0..255 with bits (n,L); return (n,3,h*s,w*s) and the bits used.

        The result is float, or uint8 on the CPU where the tiles are; the caller may overwrite it.
        """
        ...


class ModelRunner:
    """Runs a backbone in evaluation mode, without gradients, where its weights are.

    Args:
        model: the backbone.
        autocast: type that convolutions compute in; None: float32.
        collapse_tail: run a linear tail as one convolution where that is exact, which is twice as fast:
            everywhere, or on tiles inside the image (`inner`), whose outermost pixels the neighbours
            overlap.

    Attributes:
        inner: what to run tiles with that do not touch the image's border.
    """

    def __init__(
        self, model: Backbone, autocast: torch.dtype | None = None, *, collapse_tail: bool = False
    ) -> None:
        self.model = model.eval()
        self.scale = model.scale
        self.autocast = autocast
        self._collapses = collapse_tail and model.tail_border == 0
        self.inner: ModelRunner = self
        if collapse_tail and model.tail_border:
            self.inner = ModelRunner(model, autocast)
            self.inner._collapses = True

    @torch.inference_mode()
    def __call__(self, tiles: Tensor, bits: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Upscale a batch; see `TileRunner`."""
        device = next(self.model.parameters()).device
        x = tiles.to(device, torch.float32).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            output = self.model(x, None if bits is None else bits.to(device), collapse_tail=self._collapses)
        return output.sr.float(), output.bits
