"""What `cabm bench upscale` times, and on which tiles. Each contender is built in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cabm.bench import engine, openvino, peers
from cabm.bench.engine import CompiledWork
from cabm.bench.processes import Run
from cabm.checkpoints.model_directory import load_model
from cabm.engine.compiling import compile_model
from cabm.engine.kept import write_model
from cabm.evaluation.bicubic import upscale_bicubic_batch
from cabm.models import Backbone, build_model
from cabm.quant import AlphaObserver, Precision
from cabm.tables.table import EdgeToBitTable
from cabm.tiling.edges import edge_score

FLOAT = "float (fp32, eager)"
SIMULATED = "simulated (fake quantization)"
OPENVINO = "OpenVINO int8 (NNCF)"
ONNX_RUNTIME = "ONNX Runtime"
NCNN = "ncnn"


@dataclass(frozen=True)
class Work:
    """A model and the tiles to upscale.

    Attributes:
        model: a quantized model directory, or a file of `write_random_weights`.
        backbone, scale, weight_bits: of the random weights; see `cabm.quant.Precision`.
        tile: side of the tiles in pixels.
        tiles: their number; the float models take them as one batch.
        threads: CPU threads.
    """

    model: Path
    backbone: str
    scale: int
    weight_bits: int | Literal["same"]
    tile: int
    tiles: int
    threads: int

    def load(self) -> tuple[Backbone, EdgeToBitTable | None]:
        """Return the model, and the table that it comes with.

        Raises:
            InputError: no such model directory, or a damaged one.
        """
        if not self.model.is_file():
            loaded = load_model(self.model)
            return loaded.model, loaded.table
        model = self._random_model()
        model.load_state_dict(load_file(self.model))
        return model, None

    def write_random_weights(self) -> None:
        """Write the file that ``model`` names: random weights, with clip values that suit them.

        This runs the float model, whose memory a contender must not count as its own.
        """
        generator = torch.Generator().manual_seed(0)
        model = self._random_model()
        observer = AlphaObserver()
        with torch.no_grad():
            model(_noise(2, 48, generator), observer=observer)
            for quantizer in observer.modules():
                quantizer.alpha.fill_(observer.mean_peak(quantizer))
        save_file(model.state_dict(), self.model)

    def _random_model(self) -> Backbone:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            precision = Precision("cabm", weight_bits=self.weight_bits)
            return build_model(self.backbone, self.scale, precision).eval()

    def pixels(self) -> Tensor:
        """Return the tiles, (tiles,3,tile,tile) uint8. They are noise; times do not depend on it."""
        return _noise(self.tiles, self.tile, torch.Generator().manual_seed(1)).to(torch.uint8)

    def bits(self, model: Backbone, table: EdgeToBitTable | None, tiles: Tensor) -> Tensor | None:
        """Return the widths of all layers for each tile; without table, all widths in turn."""
        if model.precision.kind in ("float", "pams"):
            return None
        if table is not None:
            return torch.from_numpy(table.lookup(edge_score(tiles.numpy())))
        choices = torch.tensor(model.precision.search_space)
        mixed = choices[torch.arange(self.tiles * model.num_adaptive) % len(choices)]
        return mixed.view(self.tiles, -1)


def float_eager(work: Work) -> dict[str, Run]:
    """Return the run of the float model."""
    torch.set_num_threads(work.threads)
    return {FLOAT: partial(_forward, float_twin(work.load()[0]), work.pixels(), None)}


def simulated(work: Work) -> dict[str, Run]:
    """Return the run of the model with fake quantization."""
    torch.set_num_threads(work.threads)
    model, table = work.load()
    tiles = work.pixels()
    return {SIMULATED: partial(_forward, model, tiles, work.bits(model, table, tiles))}


def integer(work: Work) -> dict[str, Run]:
    """Return the runs of the integer engine, see `cabm.bench.engine.runs`, where it needs PyTorch."""
    torch.set_num_threads(work.threads)
    model, table = work.load()
    tiles = work.pixels()
    bits = work.bits(model, table, tiles)
    return engine.runs(
        compile_model(model), tiles.numpy(), None if bits is None else bits.numpy(), work.threads
    )


def integer_run(work: Work, folder: Path) -> Callable[[], dict[str, Run]]:
    """Compile the engine, write what it needs to a folder, and return what builds its runs.

    Compiling takes memory that only a first run needs, so it happens here and not in the contender.
    """
    model, table = work.load()
    file = folder / "compiled"
    if not write_model(file, compile_model(model)):
        return partial(integer, work)
    tiles = work.pixels()
    bits = work.bits(model, table, tiles)
    np.save(folder / "tiles.npy", tiles.numpy(), allow_pickle=False)
    if bits is not None:
        np.save(folder / "bits.npy", bits.numpy(), allow_pickle=False)
    names = folder / "tiles.npy", None if bits is None else folder / "bits.npy"
    return partial(engine.runs_of_file, CompiledWork(file, *names, work.threads))


def openvino_int8(work: Work, hint: str) -> dict[str, Run]:
    """Return the run of OpenVINO with a performance hint, ``LATENCY`` or ``THROUGHPUT``."""
    plain, tiles = float_twin(work.load()[0]), work.pixels().float()
    run = openvino.int8_runner(plain, tiles, work.threads, hint)
    return {f"{OPENVINO}, {hint.lower()}": partial(run, tiles)}


def onnx_runtime(work: Work) -> dict[str, Run]:
    """Return the run of ONNX Runtime, int8 or fp32, whichever is faster."""
    return _faster(ONNX_RUNTIME, peers.onnx_runtime_runners, work)


def ncnn(work: Work) -> dict[str, Run]:
    """Return the run of ncnn."""
    return _faster(NCNN, peers.ncnn_runners, work)


def _faster(peer: str, runners: Callable[..., dict[str, peers.Run]], work: Work) -> dict[str, Run]:
    plain, tiles = float_twin(work.load()[0]), work.pixels().float()
    precision, run = peers.fastest(runners(plain, tiles, work.threads), tiles)
    return {f"{peer} {precision}": partial(run, tiles)}


def float_twin(model: Backbone) -> Backbone:
    """Return the float model with the same weights."""
    twin = build_model(model.name, model.scale, Precision("float"), model.options)
    given = model.state_dict()
    twin.load_state_dict({name: given[name] for name in twin.state_dict()})
    return twin.eval()


@torch.inference_mode()
def _forward(model: Backbone, tiles: Tensor, bits: Tensor | None) -> Tensor:
    takes = None if model.precision.kind in ("float", "pams", "cadyq") else bits
    return model(tiles.float().contiguous(memory_format=torch.channels_last), takes).sr


def _noise(count: int, side: int, generator: torch.Generator) -> Tensor:
    return upscale_bicubic_batch(torch.rand(count, 3, side // 4, side // 4, generator=generator) * 255, 4)[
        ..., :side, :side
    ].clamp(0, 255)
