"""`cabm bench upscale`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench_upscale(
    image: Annotated[Path | None, typer.Argument(help="Time tiling on this image instead.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            help="Quantized model directory, or name of a packaged model. Default: random weights; with"
            " IMAGE, edsr_x4.",
        ),
    ] = None,
    backbone: Annotated[str, typer.Option(help="Backbone of the random weights.")] = "edsr",
    scale: Annotated[int, typer.Option(min=2, max=4, help="Scale factor of the random weights.")] = 4,
    weight_bits: Annotated[
        str, typer.Option(help="Bits of the random weights: 2 to 8, or same, those of the activations.")
    ] = "8",
    width: Annotated[int, typer.Option(min=1, help="Input width to extrapolate to, in pixels.")] = 2048,
    height: Annotated[int, typer.Option(min=1, help="Input height to extrapolate to.")] = 1080,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: all cores.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each; the median is reported.")] = 5,
    peers: Annotated[
        bool, typer.Option(help="Also time OpenVINO, ONNX Runtime and ncnn, as far as they are installed.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time upscaling by the float model, the simulated model, the integer engine and other runtimes.

    The others, which the extra bench installs, are OpenVINO int8, ONNX Runtime (int8 or fp32, whichever is
    faster) and ncnn (fp32).

    With IMAGE: time tiles grouped by bits against one by one, edge scores, and tiles against a whole image.
    Then only --model, --rounds, --threads and --json apply.

    Examples:

    cabm bench upscale -m edsr_x4

    cabm bench upscale --backbone srresnet --rounds 3

    cabm bench upscale --weight-bits same            # what few bits save on this CPU

    cabm bench upscale photo.jpg --rounds 1
    """
    if image is not None:
        _bench_tiling(image, model, rounds, threads, as_json=as_json)
        return
    import json

    from cabm.bench.upscale import UpscaleBench, format_report
    from cabm.bench.upscale import bench_upscale as run
    from cabm.checkpoints.find import find_model
    from cabm.errors import InputError

    if weight_bits not in ("same", *map(str, range(2, 9))):
        raise InputError(f"--weight-bits {weight_bits}: give 2 to 8, or same")
    directory = None if model is None else find_model(model)
    size = {"width": width, "height": height}
    options = UpscaleBench(
        directory,
        backbone,
        scale,
        weight_bits if weight_bits == "same" else int(weight_bits),
        **size,
        threads=threads,
        rounds=rounds,
        peers=peers,
    )
    result = run(options)
    typer.echo(json.dumps(result, indent=2) if as_json else format_report(result))


def _bench_tiling(image: Path, model: str | None, rounds: int, threads: int, *, as_json: bool) -> None:
    """Time tiling on an image and print the times."""
    import json
    from dataclasses import asdict

    from cabm.bench.tiling import bench_tiling, format_tiling
    from cabm.checkpoints.find import DEFAULT_MODEL
    from cabm.machine.threads import limited_threads

    with limited_threads(threads or None):
        measured = bench_tiling(image, model or DEFAULT_MODEL, rounds=rounds)
    typer.echo(json.dumps(asdict(measured), indent=2) if as_json else format_tiling(measured))
