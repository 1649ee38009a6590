"""Choose what runs a model: the integer engine or the simulated (float) model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from cabm.errors import InputError
from cabm.machine.gpu import may_have_gpu
from cabm.upscaling.runners import TileRunner

if TYPE_CHECKING:
    import torch

    from cabm.models.base import Backbone

Engine = Literal["auto", "int8", "float"]
Device = Literal["auto", "cpu", "cuda"]

# A CPU gets small batches, so that activations stay small: a float EDSR takes about 12 kB per pixel where
# its tail runs layer by layer. A GPU needs large batches.
_BATCH_PIXELS = {"cpu": 4 * 96 * 96, "cuda": 32 * 96 * 96}


@dataclass(frozen=True)
class ChosenRunner:
    """A runner and how it was chosen.

    Attributes:
        runner: upscales the tiles.
        engine: ``int8`` or ``float``.
        device: where it computes: ``cpu`` or ``cuda``.
        reason: why ``auto`` did not choose the integer engine; empty if it did or was not asked.
    """

    runner: TileRunner
    engine: str
    device: str
    reason: str = ""

    def batch_size(self, tile_pixels: int) -> int:
        """Return the number of tiles of so many pixels in a good batch."""
        return max(1, _BATCH_PIXELS[self.device] // tile_pixels)


def choose_runner(model: Backbone, *, engine: str = "auto", device: str = "auto") -> ChosenRunner:
    """Choose what runs a model: the integer engine on a CPU that has the instructions, otherwise floats.

    Args:
        model: the backbone, on the CPU; it is copied or moved to the chosen device.
        engine: ``int8`` requires the integer engine, ``float`` the simulated model; ``auto`` decides.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU if there is one, unless ``engine`` is ``int8``.

    Raises:
        InputError: an unknown name, no GPU, or an integer engine that cannot run this model here.
    """
    device = choose_device(engine, device)
    import torch

    from cabm.engine import compile_model
    from cabm.upscaling.torch_runners import HalfRunner, ModelRunner

    reason = "" if engine == "float" else _why_not_integers(model, device)
    if engine == "int8" and reason:
        raise InputError(f"engine int8: {reason}; use engine float or auto")
    if engine != "float" and not reason:
        return ChosenRunner(compile_model(model), "int8", "cpu")
    place = gpu() if device == "cuda" else torch.device("cpu")
    if device == "cuda" and HalfRunner.takes(model):
        return ChosenRunner(HalfRunner(model, place), "float", device, reason)
    return ChosenRunner(ModelRunner(model.to(place), collapse_tail=True), "float", device, reason)


def choose_device(engine: str, device: str) -> str:
    """Return where to compute, ``cpu`` or ``cuda``; arguments and errors as of `choose_runner`.

    PyTorch is asked only where a GPU is wanted, or may be there.
    """
    if engine not in get_args(Engine):
        raise InputError(f"engine {engine!r} is not one of {', '.join(get_args(Engine))}")
    if device not in get_args(Device):
        raise InputError(f"device {device!r} is not one of {', '.join(get_args(Device))}")
    if device == "auto":
        return "cuda" if engine != "int8" and may_have_gpu() and gpu() is not None else "cpu"
    if device == "cuda" and gpu() is None:
        raise InputError("device cuda: PyTorch sees no GPU here; use --device cpu")
    if device == "cuda" and engine == "int8":
        raise InputError("engine int8 runs on the CPU; use --device cpu, or --engine float on the GPU")
    return device


def gpu() -> torch.device | None:
    """Return the GPU that PyTorch sees, or None."""
    import torch

    return torch.device("cuda") if torch.cuda.is_available() else None


def _why_not_integers(model: Backbone, device: str) -> str:
    """Return why the integer engine cannot run a model, or an empty string if it can."""
    if device == "cuda":
        return "the integer engine runs on the CPU"
    if model.precision.kind == "cadyq":
        return "a cadyq model chooses its bits by values that only the float network computes"
    from cabm.engine import supports

    return supports(model) or ""
