"""What enlarges a batch of tiles: a simulated model or the integer engine, and which of them is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from cabm.errors import InputError
from cabm.models.base import Backbone

Engine = Literal["auto", "int8", "float"]
Device = Literal["auto", "cpu", "cuda"]

# Pixels of the tiles in one batch: on a CPU few, so that activations stay small (a float EDSR takes
# about 12 kB a pixel where its tail runs layer by layer); a GPU wants many.
_CPU_BATCH_PIXELS = 4 * 96 * 96
_GPU_BATCH_PIXELS = 32 * 96 * 96
_INTEGER_BATCH_TILES = 64


class TileRunner(Protocol):
    """Something that enlarges a batch of tiles: a simulated model or the integer engine."""

    scale: int

    def __call__(self, tiles: Tensor, bits: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Enlarge (n,3,h,w) in 0..255 with bits (n,L); return (n,3,h*s,w*s) and the bits used."""
        ...


class ModelRunner:
    """Runs a backbone in evaluation mode, without gradients, where its weights are.

    Args:
        model: the backbone.
        autocast: type that convolutions compute in; None: float32.
        collapse_tail: run a linear tail as one convolution where that is exact, which is twice as fast:
            on tiles inside the image (`inner`), whose outermost pixels the neighbours overlap.

    Attributes:
        inner: what to run tiles with that do not touch the image's border.
    """

    def __init__(
        self, model: Backbone, autocast: torch.dtype | None = None, *, collapse_tail: bool = False
    ) -> None:
        self.model = model.eval()
        self.scale = model.scale
        self.autocast = autocast
        self._collapses = False
        self.inner: ModelRunner = self
        if collapse_tail and model.tail_border is not None:
            self.inner = ModelRunner(model, autocast)
            self.inner._collapses = True

    @torch.inference_mode()
    def __call__(self, tiles: Tensor, bits: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Enlarge a batch; see `TileRunner`."""
        device = next(self.model.parameters()).device
        x = tiles.to(device, torch.float32).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            output = self.model(x, None if bits is None else bits.to(device), collapse_tail=self._collapses)
        return output.sr.float(), output.bits


@dataclass(frozen=True)
class ChosenRunner:
    """A runner and how it was chosen.

    Attributes:
        runner: what enlarges a batch.
        engine: ``int8`` or ``float``.
        device: where it computes, such as ``cpu`` or ``cuda``.
        reason: why not the integer engine, where ``auto`` did not take it; else empty.
        batch_pixels: pixels of a good batch of tiles.
    """

    runner: TileRunner
    engine: str
    device: str
    reason: str
    batch_pixels: int

    def batch_size(self, tile_pixels: int) -> int:
        """Tiles of that many pixels in a good batch."""
        return max(1, self.batch_pixels // tile_pixels)


def choose_runner(
    model: Backbone, *, engine: str = "auto", device: str = "auto", tile_pixels: int = 96 * 96
) -> ChosenRunner:
    """Choose what runs a model: integers on a CPU that has the units, floats elsewhere.

    Args:
        model: the backbone on the CPU; moved to ``device`` if that is another.
        engine: ``int8`` insists on the integer engine, ``float`` on the simulated model.
        device: ``auto`` takes a GPU where there is one, unless the integer engine was asked for.
        tile_pixels: pixels of one tile.

    Raises:
        InputError: an unknown name, no GPU, or the integer engine cannot run this model here.
    """
    if engine not in get_args(Engine):
        raise InputError(f"engine {engine!r} is not one of {', '.join(get_args(Engine))}")
    if device not in get_args(Device):
        raise InputError(f"device {device!r} is not one of {', '.join(get_args(Device))}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: PyTorch sees no GPU here; use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and engine != "int8" else "cpu"
    if device == "cuda" and engine == "int8":
        raise InputError("engine int8 runs on the CPU; use --device cpu, or --engine float on the GPU")
    reason = ""
    if engine != "float":
        from cabm.engine import compile_model, supports

        reason = "the integer engine runs on the CPU" if device == "cuda" else supports(model) or ""
        if engine == "int8" or not reason:
            batch = _INTEGER_BATCH_TILES * tile_pixels
            return ChosenRunner(compile_model(model), "int8", "cpu", "", batch)
    runner = ModelRunner(model.to(device), collapse_tail=True)
    pixels = _GPU_BATCH_PIXELS if device == "cuda" else _CPU_BATCH_PIXELS
    return ChosenRunner(runner, "float", device, reason, pixels)


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Let PyTorch use that many threads in the block; None leaves it as it is."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
