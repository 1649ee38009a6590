"""The interface of what upscales tiles, and the simulated model behind it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from cabm.models.base import Backbone
from cabm.quant.folded import fold, foldable, in_half


class TileRunner(Protocol):
    """Upscales tiles: a simulated model (`ModelRunner`) or the engine's `cabm.engine.IntegerModel`.

    Attributes:
        scale: scale factor.
        in_batches: whether the runner is fastest on batches of tiles of one shape. Otherwise it gets one
            tile at a time, from several threads at once.
        splits_border: whether tiles at the image's border take another computation than tiles inside it, so
            that a batch must not mix them.
    """

    scale: int
    in_batches: bool = True
    splits_border: bool = False

    def __call__(
        self, tiles: Tensor, bits: Tensor | None, *, inside: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Upscale tiles of one shape.

        Args:
            tiles: (n,3,h,w), uint8 or float, in 0..255.
            bits: (n,L) bits of each tile; None for models that take none.
            inside: no tile touches the image's border.

        Returns:
            (n,3,h*scale,w*scale) in 0..255, which the caller may overwrite: float, or uint8 on the CPU.
            And the bits that were used, (n,L) or None.
        """
        ...


class ModelRunner(TileRunner):
    """Runs a backbone in evaluation mode, without gradients, on the device that holds its weights.

    Args:
        model: the backbone.
        autocast: type in which convolutions compute; None: float32.
        collapse_tail: run a linear tail as one convolution, at twice the speed. Where the collapsed tail
            differs at the border (`Backbone.tail_border`), this is done for tiles inside the image only:
            their neighbours overlap the pixels that differ.
    """

    def __init__(
        self, model: Backbone, autocast: torch.dtype | None = None, *, collapse_tail: bool = False
    ) -> None:
        self.model = model.eval()
        self.scale = model.scale
        self.splits_border = collapse_tail and bool(model.tail_border)
        self._autocast = autocast
        self._collapse_tail = collapse_tail and model.tail_border is not None

    @torch.inference_mode()
    def __call__(
        self, tiles: Tensor, bits: Tensor | None, *, inside: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Upscale a batch; see `TileRunner`."""
        device = next(self.model.parameters()).device
        x = tiles.to(device, torch.float32).contiguous(memory_format=torch.channels_last)
        collapse = self._collapse_tail and (inside or not self.splits_border)
        with torch.autocast(device.type, self._autocast, enabled=self._autocast is not None):
            output = self.model(x, None if bits is None else bits.to(device), collapse_tail=collapse)
        return output.sr.float(), output.bits


class HalfRunner(TileRunner):
    """Runs a backbone on a GPU in half precision, channels last, on the values of its quantizers.

    Beside the float network in half precision, a quantizer adds one or two elementwise operations. The
    weights are quantized once.

    Args:
        model: a backbone on the CPU, which is copied.
        device: where to run it.
    """

    def __init__(self, model: Backbone, device: torch.device) -> None:
        self.scale = model.scale
        self.splits_border = bool(model.tail_border)
        self._collapse_tail = model.tail_border is not None
        self._device = device
        self._model = in_half(fold(model)).to(device).eval()

    takes = staticmethod(foldable)

    @torch.inference_mode()
    def __call__(
        self, tiles: Tensor, bits: Tensor | None, *, inside: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Upscale a batch; see `TileRunner`."""
        x = tiles.to(self._device, torch.float16).contiguous(memory_format=torch.channels_last)
        collapse = self._collapse_tail and (inside or not self.splits_border)
        there = None if bits is None else bits.to(self._device)
        return self._model(x, there, collapse_tail=collapse).sr.float(), bits
