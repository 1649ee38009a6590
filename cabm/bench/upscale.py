"""`cabm bench upscale`: time the float model, the simulated one, the integer engine and other runtimes.

Each runs in a process of its own, and one at a time: the threads of some runtimes keep their cores busy for
a while after their work.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from cabm.bench import contenders, peers
from cabm.bench.contenders import FLOAT, NCNN, ONNX_RUNTIME, OPENVINO, SIMULATED, Work
from cabm.bench.engine import INTEGER, ONE_THREAD, at_width, widths
from cabm.bench.machine import describe_machine, int8_peak
from cabm.bench.processes import OwnProcess, Run
from cabm.bench.rounds import interleaved, median_ratio
from cabm.engine.compiling import supports
from cabm.models import Backbone
from cabm.tiling.plan import plan

FAST, MORE = (INTEGER, OPENVINO), 6
"""Contenders that upscale this many times more tiles: so the start of threads, some milliseconds, counts as
little as in an image."""

PAUSE = 0.3
"""Seconds between two timings, until the threads of the last one sleep."""


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
        tiles: tiles per timing, and of `FAST` contenders so many times `MORE`; the float models take them
            as one batch.
        peers: also time OpenVINO, ONNX Runtime and ncnn, as far as they are installed.
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

    def work(self, folder: Path) -> Work:
        """Return what each contender upscales; random weights are written to a folder."""
        threads = self.threads or torch.get_num_threads()
        model = self.model or folder / "random.safetensors"
        work = Work(model, self.backbone, self.scale, self.weight_bits, self.tile, self.tiles, threads)
        if self.model is None:
            work.write_random_weights()
        return work


def bench_upscale(options: UpscaleBench) -> dict[str, Any]:
    """Time upscaling by every contender that this machine can run.

    Returns:
        JSON values: ``options``; ``machine``; ``tiles``, their number in the image; ``rows``, a contender
        each with its name, median seconds per tile and per image, and median speedup over float;
        ``skipped``, why contenders were not timed. If the engine runs, also ``int8``, the operations per
        second of the engine and of oneDNN's best convolution, and their ratio; ``scaling``, the speedup
        from 1 to all threads; for models whose layers take several widths, ``by_bits``, the time of a
        tile with one width in all layers / that with the largest width; ``peak_rss_mb``, the peak memory
        of the processes of engine and float model, ``before_rss_mb``, what of it they had before the first
        tile (Python and the model, and PyTorch, which the engine mostly does without), and
        ``memory_share``, the ratio of the peaks.

    Raises:
        InputError: no such model directory, or a damaged one.
        RuntimeError: a contender failed; its traceback is on the standard error.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        work = options.work(folder)
        model, _ = work.load()
        builds, skipped = _builds(model, work, folder, with_peers=options.peers)
        processes = {
            name: stack.enter_context(closing(OwnProcess(build))) for name, build in builds.items()
        }
        runs = {name: run for process in processes.values() for name, run in process.runs.items()}
        _, timings = interleaved(runs, options.rounds, pause=PAUSE)
        measured = {name: processes[name] for name in (FLOAT, INTEGER) if name in processes}
        peaks = {name: process.peak_memory() / 2**20 for name, process in measured.items()}
        before = {name: process.memory_before / 2**20 for name, process in measured.items()}
    seconds = {
        name: [time / _tiles(name, options.tiles) for time in times] for name, times in timings.items()
    }
    num_tiles = len(plan(options.height, options.width, options.tile, options.stride))
    result: dict[str, Any] = {
        "options": asdict(options) | {"model": None if options.model is None else str(options.model)},
        "machine": describe_machine(work.threads),
        "tiles": num_tiles,
        "rows": [
            {
                "name": name,
                "seconds_per_tile": statistics.median(times),
                "seconds_per_image": statistics.median(times) * num_tiles,
                "speedup": median_ratio(seconds[FLOAT], times),
            }
            for name, times in seconds.items()
        ],
        "skipped": skipped,
    }
    if INTEGER in builds:
        result |= _of_engine(model, work, seconds)
        result |= {"peak_rss_mb": peaks, "memory_share": peaks[INTEGER] / peaks[FLOAT]}
        result["before_rss_mb"] = before
    return result


def _builds(
    model: Backbone, work: Work, folder: Path, *, with_peers: bool
) -> tuple[dict[str, Callable[[], dict[str, Run]]], dict[str, str]]:
    """Return what builds the contenders of each process, by name, and why others cannot run."""

    def build(
        name: str, make: Callable[..., dict[str, Run]], *arguments: Any
    ) -> Callable[[], dict[str, Run]]:
        return partial(make, replace(work, tiles=_tiles(name, work.tiles)), *arguments)

    makers = {FLOAT: contenders.float_eager, SIMULATED: contenders.simulated}
    builds = {name: build(name, make) for name, make in makers.items()}
    skipped = {}
    reason = supports(model)
    if reason is None:
        more = replace(work, tiles=_tiles(INTEGER, work.tiles))
        builds[INTEGER] = contenders.integer_run(more, folder)
    else:
        skipped[INTEGER] = reason
    if not with_peers:
        return builds, skipped
    hints = {
        f"{OPENVINO}, {hint.lower()}": build(OPENVINO, contenders.openvino_int8, hint)
        for hint in ("LATENCY", "THROUGHPUT")
    }
    for peer, modules, those in (
        (OPENVINO, ("openvino", "nncf"), hints),
        (
            ONNX_RUNTIME,
            ("onnx", "onnxruntime"),
            {ONNX_RUNTIME: build(ONNX_RUNTIME, contenders.onnx_runtime)},
        ),
        (NCNN, ("ncnn", "pnnx"), {NCNN: build(NCNN, contenders.ncnn)}),
    ):
        reason = peers.missing(*modules)
        if reason is None:
            builds |= those
        else:
            skipped[peer] = reason
    return builds, skipped


def _tiles(name: str, tiles: int) -> int:
    """Return how many tiles a contender upscales per timing."""
    return tiles * MORE if name.startswith(FAST) else tiles


def _of_engine(model: Backbone, work: Work, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return the entries of the result that only the engine has, from seconds per tile."""
    one = seconds[ONE_THREAD]
    operations = 2 * _quantized_macs(model) * work.tile**2
    rate, peak = operations / statistics.median(one), int8_peak()
    by_bits = {width: seconds[at_width(width)] for width in widths(model.facts)}
    return {
        "int8": {"engine_tops": rate / 1e12, "peak_tops": peak / 1e12, "share": rate / peak},
        "scaling": {"threads": work.threads, "speedup": median_ratio(one, seconds[INTEGER])},
        "by_bits": {
            str(width): median_ratio(times, by_bits[max(by_bits)]) for width, times in by_bits.items()
        },
    }


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
        before = result["before_rss_mb"][name]
        lines.append(
            f"peak memory, {name}: {megabytes:.0f} MB, {before:.0f} MB of it before the first tile"
        )
    if "memory_share" in result:
        lines.append(f"peak memory, int8 engine / float: {result['memory_share']:.2f}")
    return "\n".join(lines)


def _quantized_macs(model: Backbone) -> int:
    """Multiply-accumulates per input pixel of the quantized convolutions."""
    return sum(layer.macs_per_pixel for layer in model.layers if layer.adaptive or layer.fixed_bits <= 8)
