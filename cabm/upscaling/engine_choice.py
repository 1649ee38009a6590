"""Which engine runs a model: the integer one or the simulated (float) one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from cabm.engine import compile_model, supports
from cabm.errors import InputError
from cabm.models.base import Backbone
from cabm.upscaling.runners import ModelRunner, TileRunner

Engine = Literal["auto", "int8", "float"]
Device = Literal["auto", "cpu", "cuda"]

# Pixels of the tiles in one batch: on a CPU few, so that activations stay small (a float EDSR takes
# about 12 kB a pixel where its tail runs layer by layer); a GPU wants many.
_CPU_BATCH_PIXELS = 4 * 96 * 96
_GPU_BATCH_PIXELS = 32 * 96 * 96


@dataclass(frozen=True)
class ChosenRunner:
    """A runner and how it was chosen.

    Attributes:
        runner: what upscales a batch.
        engine: ``int8`` or ``float``.
        device: where it computes, such as ``cpu`` or ``cuda``.
        reason: why not the integer engine, where ``auto`` did not take it; else empty.
        batch_pixels: pixels of a good batch of tiles. The integer engine takes them one by one.
    """

    runner: TileRunner
    engine: str
    device: str
    reason: str
    batch_pixels: int

    def batch_size(self, tile_pixels: int) -> int:
        """Tiles of that many pixels in a good batch."""
        return max(1, self.batch_pixels // tile_pixels)


def choose_runner(model: Backbone, *, engine: str = "auto", device: str = "auto") -> ChosenRunner:
    """Choose what runs a model: integers on a CPU that has the units, floats elsewhere.

    Args:
        model: the backbone on the CPU; moved to ``device`` if that is another.
        engine: ``int8`` insists on the integer engine, ``float`` on the simulated model.
        device: ``auto`` takes a GPU where there is one, unless the integer engine was asked for.

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
        if device == "cuda":
            reason = "the integer engine runs on the CPU"
        elif model.precision.kind == "cadyq":
            reason = "a cadyq model chooses its bits from what only the float network computes"
        else:
            reason = supports(model) or ""
        if engine == "int8" and reason:
            raise InputError(f"engine int8: {reason}; use engine float or auto")
        if not reason:
            return ChosenRunner(compile_model(model), "int8", "cpu", "", _CPU_BATCH_PIXELS)
    runner = ModelRunner(model.to(device), collapse_tail=True)
    pixels = _GPU_BATCH_PIXELS if device == "cuda" else _CPU_BATCH_PIXELS
    return ChosenRunner(runner, "float", device, reason, pixels)
