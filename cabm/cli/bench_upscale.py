"""`cabm bench upscale`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench_upscale(
    image: Annotated[
        Path | None,
        typer.Argument(help="Image to time grouping and tiling on, instead of the engines."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "-m",
            "--model",
            help="Quantized model directory, or the name of a packaged model; default: random weights,"
            " with an IMAGE the model that ships.",
        ),
    ] = None,
    backbone: Annotated[str, typer.Option(help="Backbone, where no model is given.")] = "edsr",
    scale: Annotated[int, typer.Option(min=2, max=4, help="Its upscaling.")] = 4,
    width: Annotated[int, typer.Option(min=1, help="Input width that times are extrapolated to.")] = 2048,
    height: Annotated[int, typer.Option(min=1, help="Input height.")] = 1080,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0: all cores.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each contender; the median counts.")] = 5,
    openvino: Annotated[bool, typer.Option(help="Time OpenVINO's int8 too, where installed.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time an upscaling by the float model, the simulated one, the integer engine and OpenVINO.

    With an IMAGE: what grouping its tiles by their bits gains over one tile at a time, what share of the
    time scores and look-up take, and what tiling costs. Then only --model, --rounds, --threads and --json
    count.

    Examples:

    cabm bench upscale -m edsr_x4

    cabm bench upscale --backbone srresnet --rounds 3

    cabm bench upscale photo.jpg --rounds 1
    """
    import json

    if image is not None:
        from dataclasses import asdict

        from cabm.bench.tiling import bench_tiling, format_tiling
        from cabm.checkpoints.find import DEFAULT_MODEL
        from cabm.machine.threads import torch_threads

        with torch_threads(threads or None):
            measured = bench_tiling(image, model or DEFAULT_MODEL, rounds=rounds)
        typer.echo(json.dumps(asdict(measured), indent=2) if as_json else format_tiling(measured))
        return
    from cabm.bench.upscale import UpscaleBench, format_report
    from cabm.bench.upscale import bench_upscale as run
    from cabm.checkpoints.find import find_model

    options = UpscaleBench(
        model=None if model is None else find_model(model),
        backbone=backbone,
        scale=scale,
        width=width,
        height=height,
        threads=threads,
        rounds=rounds,
        openvino=openvino,
    )
    result = run(options)
    typer.echo(json.dumps(result, indent=2) if as_json else format_report(result))
