"""The `cabm` command."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback

import typer

from cabm import __version__
from cabm.cli.bench_train import bench_train
from cabm.cli.bench_upscale import bench_upscale
from cabm.cli.cluster_upscale import upscale_on_cluster
from cabm.cli.export import export
from cabm.cli.import_checkpoint import import_checkpoint
from cabm.cli.model import show_model
from cabm.cli.preset import preset
from cabm.cli.report import report
from cabm.cli.table import build_table, plot_table, show_table
from cabm.cli.upscale import upscale
from cabm.errors import InputError, TrainingDiverged, debugging, error_line

_OBJECTS_PER_COLLECTION = 50_000

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Content-aware bit mapping for super-resolution of large images.",
)
bench = typer.Typer(no_args_is_help=True, help="Measure speed, as ratios in one run.")
clusters = typer.Typer(no_args_is_help=True, help="Upscale millions of images on many machines.")
models = typer.Typer(no_args_is_help=True, help="Describe model directories.")
tables = typer.Typer(no_args_is_help=True, help="Describe, draw and build edge-to-bit tables.")
app.add_typer(bench, name="bench")
app.add_typer(clusters, name="cluster")
app.add_typer(models, name="model")
app.add_typer(tables, name="table")

app.command()(upscale)
clusters.command("upscale")(upscale_on_cluster)
app.command()(preset)
app.command()(report)
models.command("show")(show_model)
tables.command("show")(show_table)
tables.command("plot")(plot_table)
tables.command("build")(build_table)
app.command("import-checkpoint")(import_checkpoint)
app.command()(export)
bench.command("train")(bench_train)
bench.command("upscale")(bench_upscale)


@app.callback(invoke_without_command=True)
def options(
    version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True),
) -> None:
    """Read the options of the command itself."""
    if version:
        typer.echo(f"cabm {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command. An error that the user can act on is one line on stderr.

    With CABM_DEBUG=1 in the environment its traceback comes first.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    _collect_seldom()
    try:
        app()
    except (InputError, TrainingDiverged, OSError) as error:
        if debugging():
            traceback.print_exc()
        typer.echo(f"cabm: {error_line(error)}", err=True)
        sys.exit(1)


def _collect_seldom() -> None:
    """Keep the garbage collector from searching PyTorch's modules, over and over and at the exit.

    They make hundreds of thousands of objects that all live to the end; without this a fifth of a short
    command is the search.
    """
    gc.set_threshold(_OBJECTS_PER_COLLECTION, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)


if __name__ == "__main__":
    main()
