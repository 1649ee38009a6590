"""`cabm bench train`."""

from __future__ import annotations

from typing import Annotated

import typer


def bench_train(
    backbone: Annotated[str, typer.Option(help="edsr, srresnet, idn or carn, full size.")] = "edsr",
    scale: Annotated[int, typer.Option(min=2, max=4, help="Scale factor.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each step; the median is reported.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: all cores.")] = 0,
) -> None:
    """Time a training step of the float, PAMS, CADyQ and CABM model, as ratios to a plain float32 step.

    Example: cabm bench train --backbone idn
    """
    import torch

    from cabm.errors import PIPELINE, require

    require("cabm bench train", *PIPELINE)
    from cabm.bench.train import training_steps

    if threads:
        torch.set_num_threads(threads)
    typer.echo(f"{backbone} x{scale}, batch 16, patch 24, {torch.get_num_threads()} threads")
    typer.echo(f"{'step':28} {'seconds':>9} {'units':>7}")
    for row in training_steps(backbone, scale, rounds=rounds):
        typer.echo(f"{row.name:28} {row.seconds:9.3f} {row.units:7.2f}")
