"""`cabm bench upscale`: time the float model, the simulated one, the integer engine and other runtimes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cabm.bench import openvino as openvino_int8
from cabm.bench import peers
from cabm.bench.machine import describe_machine, int8_peak
from cabm.bench.rounds import interleaved, median_ratio
from cabm.checkpoints.model_directory import load_model
from cabm.engine.integer import compile_model, supports
from cabm.imaging.bicubic import upscale_bicubic_batch
from cabm.machine.memory import peak_memory
from cabm.machine.threads import torch_threads
from cabm.models import Backbone, build_model
from cabm.quant import AlphaObserver, Precision
from cabm.tables.table import EdgeToBitTable
from cabm.tiling.edges import edge_score
from cabm.tiling.plan import plan

FLOAT = "float (fp32, eager)"
SIMULATED = "simulated (fake quantization)"
INTEGER = "int8 engine"
ONE_THREAD = "int8 engine, 1 thread"
OPENVINO = "OpenVINO int8 (NNCF)"
ONNX_RUNTIME = "ONNX Runtime"
NCNN = "ncnn"


@dataclass(frozen=True)
class UpscaleBench:
    """Options of `bench_upscale`.

    Attributes:
        model: a quantized model directory; None: ``backbone`` with random weights, calibrated.
        backbone, scale, weight_bits: of the random model; see `cabm.quant.Precision`.
        height, width: of the input image that times are extrapolated to, in pixels.
        tile, stride: of its tiles, in pixels.
        threads: CPU threads; 0: PyTorch's setting.
        rounds: timings of each contender.
        tiles: tiles per timing; the float models take them as one batch.
        peers: also time OpenVINO, ONNX Runtime and ncnn, as far as they are installed.
        memory: also measure the peak memory of the engine and the float model.
    """

    model: Path | None = None
    backbone: str = "edsr"
    scale: int = 4
    weight_bits: int | Literal["same"] = 8
    height: int = 1080
    width: int = 2048
    tile: int = 96
    stride: int = 94
    threads: int = 0
    rounds: int = 5
    tiles: int = 4
    peers: bool = True
    memory: bool = True


def bench_upscale(options: UpscaleBench) -> dict[str, Any]:
    """Time upscaling by every contender that this machine can run.

    Returns:
        JSON values: ``options``; ``machine``; ``tiles``, their number in the image; ``rows``, a contender
        each with its name, median seconds per tile and per image, and median speedup over float;
        ``skipped``, why contenders were not timed. If the engine runs, also ``int8``, the operations per
        second of the engine and of oneDNN's best convolution, and their ratio; ``scaling``, the speedup
        from 1 to all threads; for models whose layers take several widths, ``by_bits``, the time of a
        tile with one width in all layers / that with the largest width; ``peak_rss_mb``, and
        ``memory_share``, that of the engine / that of float.

    Raises:
        InputError: no such model directory, or a damaged one.
    """
    threads = options.threads or torch.get_num_threads()
    with torch_threads(threads):
        return _bench(options, threads)


def _bench(options: UpscaleBench, threads: int) -> dict[str, Any]:
    model, table = _model(options)
    tiles, bits = _work(options, model, table)
    runs, skipped = _contenders(options, model, tiles, bits, threads)
    _, seconds = interleaved(runs, options.rounds)
    num_tiles = len(plan(options.height, options.width, options.tile, options.stride))
    result: dict[str, Any] = {
        "options": asdict(options) | {"model": None if options.model is None else str(options.model)},
        "machine": describe_machine(threads),
        "tiles": num_tiles,
        "rows": [
            {
                "name": name,
                "seconds_per_tile": statistics.median(times) / len(tiles),
                "seconds_per_image": statistics.median(times) / len(tiles) * num_tiles,
                "speedup": median_ratio(seconds[FLOAT], times),
            }
            for name, times in seconds.items()
        ],
        "skipped": skipped,
    }
    if INTEGER in runs:
        operations = 2 * _quantized_macs(model) * options.tile**2 * len(tiles)
        rate, peak = operations / statistics.median(seconds[ONE_THREAD]), int8_peak()
        result["int8"] = {"engine_tops": rate / 1e12, "peak_tops": peak / 1e12, "share": rate / peak}
        speedup = median_ratio(seconds[ONE_THREAD], seconds[INTEGER])
        result["scaling"] = {"threads": threads, "speedup": speedup}
        by_bits = {width: seconds[_at(width)] for width in _widths(model)}
        result["by_bits"] = {
            str(width): median_ratio(times, by_bits[max(by_bits)]) for width, times in by_bits.items()
        }
        if options.memory:
            peaks = {name: _peak_memory(options, name) for name in (FLOAT, INTEGER)}
            result["peak_rss_mb"] = peaks
            result["memory_share"] = peaks[INTEGER] / peaks[FLOAT]
    return result


def _contenders(
    options: UpscaleBench, model: Backbone, tiles: Tensor, bits: Tensor | None, threads: int
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Return the contenders by name, and why others cannot run."""
    plain, skipped = float_twin(model), {}
    runs: dict[str, Callable[[], object]] = {
        FLOAT: lambda: _forward(plain, tiles, None),
        SIMULATED: lambda: _forward(model, tiles, bits),
    }
    reason = supports(model)
    if reason is None:
        engine = compile_model(model)
        runs[INTEGER] = lambda: engine.run(tiles, bits, threads=threads)
        runs[ONE_THREAD] = lambda: engine.run(tiles, bits, threads=1)
        for width in _widths(model):
            rows = torch.full((len(tiles), model.num_adaptive), width)
            runs[_at(width)] = partial(engine.run, tiles, rows, threads=1)
    else:
        skipped[INTEGER] = reason
    if options.peers:
        _add_peers(runs, skipped, plain, tiles.float(), threads)
    return runs, skipped


def _add_peers(
    runs: dict[str, Callable[[], object]],
    skipped: dict[str, str],
    plain: Backbone,
    tiles: Tensor,
    threads: int,
) -> None:
    """Add the other runtimes to the contenders, or why they cannot run, by name."""
    reason = peers.missing("openvino", "nncf")
    if reason is None:
        for hint in ("LATENCY", "THROUGHPUT"):
            run = openvino_int8.int8_runner(plain, tiles, threads, hint)
            runs[f"{OPENVINO}, {hint.lower()}"] = partial(run, tiles)
    else:
        skipped[OPENVINO] = reason
    for peer, modules, runners in (
        (ONNX_RUNTIME, ("onnx", "onnxruntime"), peers.onnx_runtime_runners),
        (NCNN, ("ncnn", "pnnx"), peers.ncnn_runners),
    ):
        reason = peers.missing(*modules)
        if reason is None:
            precision, run = peers.fastest(runners(plain, tiles, threads), tiles)
            runs[f"{peer} {precision}"] = partial(run, tiles)
        else:
            skipped[peer] = reason


def format_report(result: dict[str, Any]) -> str:
    """Return the result of `bench_upscale` as lines of text."""
    options, machine = result["options"], result["machine"]
    size = f"{options['width']}x{options['height']}"
    lines = [
        f"{size} x{options['scale']}: {result['tiles']} tiles of {options['tile']} pixels,"
        f" {machine['threads']} threads, load {machine['load']:.1f}; {machine['cpu']}",
        f"{'':34} {'ms/tile':>9} {'s/image':>9} {'speedup':>8}",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['name']:34} {1000 * row['seconds_per_tile']:9.1f}"
            f" {row['seconds_per_image']:9.1f} {row['speedup']:8.2f}"
        )
    lines += [f"{name}: not timed: {reason}" for name, reason in result["skipped"].items()]
    if "int8" in result:
        int8, scaling = result["int8"], result["scaling"]
        lines.append(
            f"int8 on one thread: {int8['engine_tops']:.2f} TOPS, {100 * int8['share']:.0f} % of the"
            f" {int8['peak_tops']:.2f} of the best single convolution"
        )
        lines.append(f"1 to {scaling['threads']} threads: {scaling['speedup']:.2f} times")
    if result.get("by_bits"):
        times = ", ".join(f"{width} bits {ratio:.2f}" for width, ratio in result["by_bits"].items())
        lines.append(f"time of a tile with one width in all layers: {times}")
    for name, megabytes in result.get("peak_rss_mb", {}).items():
        lines.append(f"peak memory, {name}: {megabytes:.0f} MB")
    if "memory_share" in result:
        lines.append(f"peak memory, int8 engine / float: {result['memory_share']:.2f}")
    return "\n".join(lines)


def _model(options: UpscaleBench) -> tuple[Backbone, EdgeToBitTable | None]:
    if options.model is not None:
        loaded = load_model(options.model)
        return loaded.model, loaded.table
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(
            options.backbone, options.scale, Precision("cabm", weight_bits=options.weight_bits)
        ).eval()
    observer = AlphaObserver()
    with torch.no_grad():
        model(_noise(2, 48, generator), observer=observer)
        for quantizer in observer.modules():
            quantizer.alpha.fill_(observer.mean_peak(quantizer))
    return model, None


def _work(
    options: UpscaleBench, model: Backbone, table: EdgeToBitTable | None
) -> tuple[Tensor, Tensor | None]:
    """Return tiles and their bits. The pixels are noise; times do not depend on them."""
    tiles = _noise(options.tiles, options.tile, torch.Generator().manual_seed(1)).to(torch.uint8)
    if model.precision.kind in ("float", "pams"):
        return tiles, None
    if table is not None:
        return tiles, torch.from_numpy(table.lookup(edge_score(tiles).numpy()))
    widths = torch.tensor(model.precision.search_space)
    mixed = widths[torch.arange(options.tiles * model.num_adaptive) % len(widths)]
    return tiles, mixed.view(options.tiles, -1)


def _widths(model: Backbone) -> tuple[int, ...]:
    """Return the widths that a model's layers choose from; none if they have one width only."""
    return model.precision.search_space if model.precision.kind in ("cadyq", "cabm") else ()


def _at(width: int) -> str:
    return f"{ONE_THREAD}, {width} bits"


def _noise(count: int, side: int, generator: torch.Generator) -> Tensor:
    return upscale_bicubic_batch(torch.rand(count, 3, side // 4, side // 4, generator=generator) * 255, 4)[
        ..., :side, :side
    ].clamp(0, 255)


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


def _quantized_macs(model: Backbone) -> int:
    """Multiply-accumulates per input pixel of the quantized convolutions."""
    return sum(layer.macs_per_pixel for layer in model.layers if layer.adaptive or layer.fixed_bits <= 8)


def _peak_memory(options: UpscaleBench, name: str) -> float:
    """Return the peak resident memory in MB of a new process that runs a contender."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory_here, (options, name))


def _peak_memory_here(options: UpscaleBench, name: str) -> float:
    model, table = _model(options)
    tiles, bits = _work(options, model, table)
    if name == INTEGER:
        run = compile_model(model).run
    else:
        run, bits = partial(_forward, float_twin(model)), None
    for _ in range(2):
        run(tiles, bits)
    return peak_memory() / 2**20
