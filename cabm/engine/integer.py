"""Compile a trained model for the CPU's integer units, and run it tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from cabm.engine import elementwise, onednn
from cabm.engine.ends import Ends, fastest
from cabm.engine.fused import kernel_for
from cabm.engine.packing import Row
from cabm.engine.programs import Program
from cabm.engine.programs.carn import CarnProgram
from cabm.engine.programs.edsr import EdsrProgram
from cabm.engine.programs.idn import IdnProgram
from cabm.engine.programs.srresnet import SRResNetProgram
from cabm.errors import InputError
from cabm.machine.memory import keep_freed_memory
from cabm.machine.threads import in_order
from cabm.models.base import Backbone
from cabm.models.srresnet import SRResNet

KEPT_PLANS = 256  # about 50 kB each

# one line per backbone
PROGRAMS: dict[str, Callable[[Backbone, torch.dtype], Program]] = {
    "edsr": EdsrProgram,
    "srresnet": SRResNetProgram,
    "idn": IdnProgram,
    "carn": CarnProgram,
}


class IntegerModel:
    """A trained model whose quantized convolutions run on bytes; made by `compile_model`.

    Weights are packed once. The scales and clip values of a row of bits are computed when the row is first
    used. The original model must not change afterwards.

    Attributes:
        scale: the scale factor.
        num_adaptive: L, the number of bits per row; 0 for PAMS models, which take no bits.
        in_batches, splits_border: see `cabm.upscaling.runners.TileRunner`.
    """

    in_batches = False
    splits_border = False

    def __init__(self, model: Backbone, ends: Ends) -> None:
        self.scale = model.scale
        self._kind = model.precision.kind
        self._search_space = model.precision.search_space
        self.num_adaptive = 0 if self._kind == "pams" else model.num_adaptive
        self._program = PROGRAMS[model.name](model.eval(), ends)
        self._plan = lru_cache(KEPT_PLANS)(self._program.plan)

    def run(
        self,
        tiles: Tensor,
        bits: Tensor | None = None,
        *,
        threads: int | None = None,
        dtype: torch.dtype = torch.uint8,
    ) -> Tensor:
        """Upscale tiles, each on one thread, so that its activations stay in one core's cache.

        Args:
            tiles: (N,3,h,w) uint8 or float in 0..255, on the CPU.
            bits: (N,L) integer widths from the search space; None for PAMS models.
            threads: tiles that run at once; default: PyTorch's number of threads. Fewer tiles share the
                threads.
            dtype: uint8 (rounded and clipped to 0..255) or float32 (the network's output).

        Returns:
            (N,3,h*scale,w*scale) of ``dtype``.

        Raises:
            ValueError: bits are missing, or given to a PAMS model, or have a wrong shape or width.
        """
        n, channels, height, width = tiles.shape
        rows = self._rows(n, bits)
        # channels last, as the tails write them
        out = torch.empty(n, height * self.scale, width * self.scale, channels, dtype=dtype)
        out = out.permute(0, 3, 1, 2)
        for _ in in_order(
            lambda index: self._upscale(tiles[index], rows[index], out[index]), n, threads=threads
        ):
            pass
        return out

    @torch.inference_mode()
    def _upscale(self, tile: Tensor, row: Row, out: Tensor) -> None:
        """Upscale a tile (3,h,w) at a row of bits into ``out``."""
        x = tile[None].float().contiguous()
        result = self._program.run(x, self._plan(row))[0]
        out.copy_(result.round_().clamp_(0, 255) if out.dtype == torch.uint8 else result)

    def __call__(
        self, tiles: np.ndarray, bits: np.ndarray | None, *, inside: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Upscale tiles as `cabm.upscaling.runners.TileRunner` asks: uint8 to uint8, float to float32.

        The result is the same whether or not the tiles are ``inside`` the image.
        """
        dtype = torch.uint8 if tiles.dtype == np.uint8 else torch.float32
        widths = None if bits is None else torch.from_numpy(bits)
        return self.run(torch.from_numpy(tiles), widths, dtype=dtype).numpy(), bits

    def _rows(self, n: int, bits: Tensor | None) -> Sequence[Row]:
        if bits is None or self._kind == "pams":
            if (bits is None) != (self._kind == "pams"):
                raise ValueError(f"a {self._kind} model {'takes no' if bits is not None else 'needs'} bits")
            return [None] * n
        if bits.shape != (n, self.num_adaptive):
            wanted = (n, self.num_adaptive)
            raise ValueError(f"bits have shape {tuple(bits.shape)}, expected {wanted}")
        unknown = set(bits.unique().tolist()) - set(self._search_space)
        if unknown:
            raise ValueError(
                f"bits {sorted(unknown)} are not in the search space {list(self._search_space)}"
            )
        return [tuple(row) for row in bits.tolist()]


def compile_model(model: Backbone, *, float_dtype: torch.dtype | None = None) -> IntegerModel:
    """Compile a trained model for this machine's integer units.

    From then on the process keeps freed memory; see `cabm.machine.memory.keep_freed_memory`.

    Args:
        model: a quantized backbone on the CPU with calibrated clip values. CADyQ models run at given
            bits; their bit selectors are not used.
        float_dtype: type of the float convolutions after the quantized ones; default: the fastest on this
            CPU, see `cabm.engine.ends`.

    Raises:
        InputError: the model or this machine is not supported; see `supports`.
    """
    reason = supports(model)
    if reason is not None:
        raise InputError(f"engine int8: {reason}; use engine float or auto")
    elementwise.compiled()  # before threads need it
    keep_freed_memory()
    with torch.no_grad():
        return IntegerModel(model, fastest() if float_dtype is None else Ends(float_dtype))


def supports(model: Backbone) -> str | None:
    """Return one line on why a model cannot run in integer arithmetic here, or None if it can."""
    reason = why_not(model)
    if reason is not None:
        return reason
    device = next(model.parameters()).device.type
    if device != "cpu":
        return f"the integer engine runs on the CPU, the model is on {device}"
    if kernel_for(model) is not None:
        return None
    ok, reason = onednn.available()
    return None if ok else reason


def why_not(model: Backbone) -> str | None:
    """Return one line on why a model has no integer form on any machine, or None if it has one."""
    precision = model.precision
    if precision.kind == "float":
        return "a float model has no quantized layers"
    if model.name not in PROGRAMS:
        return f"backbone {model.name} has no integer program"
    if precision.quantize_ends:
        return "quantized heads and tails have no integer program"
    if isinstance(model, SRResNet) and model.options["release_graph"]:
        return "the released graph of srresnet convolves inputs that are not quantized"
    return None
