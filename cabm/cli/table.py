"""`cabm table show`, `cabm table plot` and `cabm table build`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cabm.cli.outputs import OverwriteOption

if TYPE_CHECKING:
    from cabm.tables.table import EdgeToBitTable

MAX_ROWS = 12
"""Rows of a table that are printed unless all are asked for."""

TableArgument = Annotated[
    str,
    typer.Argument(help="Edge-to-bit table (JSON), or a model that has one.", show_default=False),
]


def show_table(
    table: TableArgument,
    all_rows: Annotated[bool, typer.Option("--all", help="Print every row, not a selection.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Describe an edge-to-bit table: the model it is for, and the bits by edge score.

    Example: cabm table show models/cabm --all
    """
    loaded = _find_table(table)
    if as_json:
        typer.echo(json.dumps(loaded.describe(), indent=2, ensure_ascii=False))
        return
    echo_facts({"model": f"{loaded.backbone} x{loaded.scale}, {len(loaded.layers)} adaptive layers"})
    echo_table(loaded, len(loaded.rows) if all_rows else MAX_ROWS)
    echo_facts({"bits of": f"sha256 {loaded.source_sha256 or 'unknown'}"})


def plot_table(
    table: TableArgument,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Figure to write: .png, .svg or .pdf.", show_default=False),
    ],
    overwrite: OverwriteOption = False,
) -> None:
    """Draw the bits of every layer against the edge score.

    Example: cabm table plot models/cabm -o table.png
    """
    from cabm.cli.outputs import check_figure_name, check_new_file, save_figure
    from cabm.reporting.bits import table_picture

    check_figure_name(output)
    check_new_file(output, [Path(table)], overwrite=overwrite)
    save_figure(table_picture(_find_table(table)), output)
    typer.echo(f"wrote {output}")


def build_table(
    observations: Annotated[Path, typer.Argument(help="observations.npz of the edge_to_bit stage.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Table (JSON) to write.")],
    strategy: Annotated[
        str,
        typer.Option(
            help="constant (one row for all tiles), or the row of each score: monotone, lowest or majority."
        ),
    ] = "constant",
    fab_cap: Annotated[
        float | None,
        typer.Option(
            min=0, max=8, help="Highest mean bits of the constant row; of others, drop rows not below it."
        ),
    ] = None,
    max_loss_db: Annotated[
        float,
        typer.Option(min=0, max=100, help="PSNR that bypass may cost over all tiles, in dB; 0: no bypass."),
    ] = 0.01,
    max_tile_loss_db: Annotated[
        float, typer.Option(min=0, max=100, help="PSNR that bypass may cost any one tile, in dB.")
    ] = 0.3,
    contrast_limit: Annotated[
        float,
        typer.Option(
            min=0, max=128, help="Highest contrast of what enters the network, in levels; 0: no limit."
        ),
    ] = 0.0,
    overwrite: OverwriteOption = False,
) -> None:
    """Build a table from stored observations, without running the network.

    Example: cabm table build tables/observations.npz --strategy monotone -o monotone.json
    """
    from cabm.cli.outputs import check_new_file
    from cabm.tables.bypass import choose_bypass
    from cabm.tables.cost import fab
    from cabm.tables.observations import Observations
    from cabm.tables.table import build_table as make_table

    check_new_file(output, [observations], overwrite=overwrite)
    observed = Observations.load(observations)
    table = make_table(observed, strategy=strategy, fab_cap=fab_cap)
    bypass = choose_bypass(observed, max_loss_db=max_loss_db, max_tile_loss_db=max_tile_loss_db)
    replace(table, bypass=bypass, contrast_limit=contrast_limit or None).save(output)
    share = 0.0 if bypass is None else bypass.share
    facts = f"{len(table.rows)} rows, FAB {fab(table.lookup(observed.scores)):.2f}"
    typer.echo(f"wrote {output}: {facts}, {share:.0%} of the validation pixels bypassed")


def echo_table(table: EdgeToBitTable, max_rows: int) -> None:
    """Print a table, with at most ``max_rows`` of its rows, evenly spaced."""
    summary = table.describe()
    rows = summary["by_score"]
    most = "at most" if table.strategy == "constant" else "below"
    cap = "" if table.fab_cap is None else f", FAB {most} {table.fab_cap}"
    by_score = f"{len(rows)} by edge score" if len(rows) > 1 else "1 for all tiles"
    echo_facts(
        {
            "tiles": f"{table.tile} x {table.tile}, stride {table.stride}",
            "rows": f"{by_score}, strategy {table.strategy}{cap}",
            "FAB": f"{summary['fab_lowest']:.2f} .. {summary['fab_highest']:.2f}",
        }
    )
    if table.bypass is not None:
        facts = {name: value for name, value in asdict(table.bypass).items() if value is not None}
        part, threshold = facts.pop("part"), facts.pop("threshold")
        measured = ", ".join(f"{name} {value:.2g}" for name, value in facts.items())
        text = f"parts of {part} x {part} with an edge peak below {threshold:g} are bicubic"
        echo_facts({"bypass": text + (f" ({measured})" if measured else "")})
    if table.contrast_limit is not None:
        echo_facts(
            {"contrast": f"limited to {table.contrast_limit:g} before the network, restored behind it"}
        )
    chosen = rows
    if len(rows) > max_rows:
        chosen = [rows[round(index * (len(rows) - 1) / (max_rows - 1))] for index in range(max_rows)]
        echo_facts({"": f"{max_rows} of the {len(rows)} rows:"})
    for row in chosen:
        layers = ", ".join(f"{count} at {width}" for width, count in row["layers_by_bits"].items())
        echo_facts({"": f"score {row['from']:7.2f} and up  FAB {row['fab']:.2f}: {layers} bits"})


def echo_facts(facts: dict[str, Any]) -> None:
    """Print facts, one line each, with their names in a column of their own."""
    for name, value in facts.items():
        typer.echo(f"{name:10} {value}" if len(name) <= 10 else f"{name} {value}")


def _find_table(where: str) -> EdgeToBitTable:
    """Read a table from its file, a model directory or a packaged model.

    Raises:
        InputError: there is none, or the model has no table.
    """
    from cabm.checkpoints.find import find_model
    from cabm.checkpoints.model_files import TABLE_FILE, read_config
    from cabm.errors import InputError
    from cabm.tables.table import EdgeToBitTable

    if Path(where).is_file():
        return EdgeToBitTable.load(where)
    directory = find_model(where)
    path = directory / TABLE_FILE
    if not path.is_file():
        kind = read_config(directory).precision.kind
        raise InputError(f"{directory}: a {kind} model without {TABLE_FILE}; name a cabm model or a table")
    return EdgeToBitTable.load(path)
