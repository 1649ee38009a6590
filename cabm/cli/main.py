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
from cabm.cli.relocate_runs import relocate_runs
from cabm.cli.report import report
from cabm.cli.table import build_table, plot_table, show_table
from cabm.cli.upscale import upscale
from cabm.cli.web import web
from cabm.errors import InputError, TrainingDiverged, debugging, error_line, missing_extra

_OBJECTS_PER_COLLECTION = 50_000

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Content-aware bit mapping (CABM) for super-resolution of large images.

    Start with: cabm upscale photo.jpg

    CABM_DEBUG=1 in the environment prints the traceback of errors.""",
)
bench = typer.Typer(no_args_is_help=True, help="Measure speed, as ratios within one run.")
clusters = typer.Typer(no_args_is_help=True, help="Upscale millions of images on many machines.")
models = typer.Typer(no_args_is_help=True, help="Describe model directories.")
tables = typer.Typer(no_args_is_help=True, help="Describe, draw and build edge-to-bit tables.")
_USE, _TRAIN = "Use models", "Train models"

app.command(rich_help_panel=_USE)(upscale)
app.command(rich_help_panel=_USE)(web)
app.add_typer(clusters, name="cluster", rich_help_panel=_USE)
clusters.command("upscale")(upscale_on_cluster)
app.add_typer(models, name="model", rich_help_panel=_USE)
models.command("show")(show_model)
app.command(rich_help_panel=_USE)(export)
app.command("import-checkpoint", rich_help_panel=_USE)(import_checkpoint)
app.add_typer(bench, name="bench", rich_help_panel=_USE)
bench.command("train")(bench_train)
bench.command("upscale")(bench_upscale)
app.command(rich_help_panel=_TRAIN)(preset)
app.command(rich_help_panel=_TRAIN)(report)
app.command("relocate-runs", rich_help_panel=_TRAIN)(relocate_runs)
app.add_typer(tables, name="table", rich_help_panel=_TRAIN)
tables.command("show")(show_table)
tables.command("plot")(plot_table)
tables.command("build")(build_table)


@app.callback(invoke_without_command=True)
def options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    """Handle the options of `cabm` itself."""
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
    except (InputError, TrainingDiverged, OSError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and missing_extra(error) is None:
            raise
        if debugging():
            traceback.print_exc()
        typer.echo(f"cabm: {error_line(error)}", err=True)
        sys.exit(1)


def _collect_seldom() -> None:
    """Keep the garbage collector from searching PyTorch's modules again and again, and at exit.

    Their hundreds of thousands of objects all live to the end. The search would take a fifth of the time of
    a short command.
    """
    gc.set_threshold(_OBJECTS_PER_COLLECTION, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)


if __name__ == "__main__":
    main()
