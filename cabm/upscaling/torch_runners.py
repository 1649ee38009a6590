"""Runners of models in PyTorch: the simulated model, and its form for GPUs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cabm.models.base import Backbone
from cabm.quant.folded import fold, foldable, in_half
from cabm.upscaling.runners import TileRunner


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
        self, tiles: np.ndarray, bits: np.ndarray | None, *, inside: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Upscale a batch; see `TileRunner`."""
        device = next(self.model.parameters()).device
        x = _on(device, tiles, torch.float32)
        widths = None if bits is None else torch.from_numpy(bits).to(device)
        collapse = self._collapse_tail and (inside or not self.splits_border)
        with torch.autocast(device.type, self._autocast, enabled=self._autocast is not None):
            output = self.model(x, widths, collapse_tail=collapse)
        used = None if output.bits is None else output.bits.to("cpu", torch.int64).numpy()
        return _back(output.sr, tiles.dtype), used


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
        self, tiles: np.ndarray, bits: np.ndarray | None, *, inside: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Upscale a batch; see `TileRunner`."""
        x = _on(self._device, tiles, torch.float16)
        collapse = self._collapse_tail and (inside or not self.splits_border)
        widths = None if bits is None else torch.from_numpy(bits).to(self._device)
        return _back(self._model(x, widths, collapse_tail=collapse).sr, tiles.dtype), bits


def _on(device: torch.device, tiles: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Return tiles as a tensor on a device, channels last."""
    return torch.from_numpy(tiles).to(device, dtype).contiguous(memory_format=torch.channels_last)


def _back(result: Tensor, dtype: np.dtype) -> np.ndarray:
    """Return a result as float32, or rounded if the tiles were uint8: a fourth of the bytes to copy."""
    values = result.float()
    if dtype == np.uint8:
        values = values.round().clamp_(0, 255).to(torch.uint8)
    return values.cpu().numpy()
