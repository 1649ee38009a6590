"""`cabm bench train`."""

from __future__ import annotations

from typing import Annotated

import typer


def bench_train(
    backbone: Annotated[str, typer.Option(help="Backbone, in its published size.")] = "edsr",
    scale: Annotated[int, typer.Option(min=2, max=4, help="Upscaling.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each kind; the median counts.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0: all cores.")] = 0,
) -> None:
    """Time a training step of every precision, as ratios to a float32 step of the float model.

    Example: cabm bench train --backbone idn
    """
    import torch

    from cabm.bench.train import training_steps

    if threads:
        torch.set_num_threads(threads)
    typer.echo(f"{backbone} x{scale}, batch 16, patch 24, {torch.get_num_threads()} threads")
    typer.echo(f"{'step':28} {'seconds':>9} {'units':>7}")
    for row in training_steps(backbone, scale, rounds=rounds):
        typer.echo(f"{row.name:28} {row.seconds:9.3f} {row.units:7.2f}")
