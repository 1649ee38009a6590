"""`cabm model show`, `cabm table show` and `cabm table plot`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cabm.tables.table import EdgeToBitTable

_MOST_ROWS = 12

ModelArgument = Annotated[
    str,
    typer.Argument(help="Model directory, or the name of a packaged model.", show_default=False),
]
TableArgument = Annotated[
    str,
    typer.Argument(help="Edge-to-bit table (JSON), or a model that has one.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


def show_model(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Describe a model: backbone, scale, size, FAB by edge score, where it was trained, hashes.

    Example: cabm model show models/cabm
    """
    from cabm.checkpoints.find import find_model
    from cabm.checkpoints.model_directory import TABLE_FILE, WEIGHTS_FILE, load_model
    from cabm.files import sha256_file
    from cabm.project.params import flatten

    loaded = load_model(find_model(model))
    network, config, directory = loaded.model, loaded.config, loaded.directory
    facts: dict[str, Any] = {
        "directory": str(directory),
        "backbone": f"{config.backbone} x{config.scale}",
        "options": config.options,
        "precision": config.precision.model_dump(),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "macs_per_pixel": sum(layer.macs_per_pixel for layer in network.layers),
        "adaptive_layers": network.num_adaptive,
        "receptive_field": network.receptive_field,
        "weights_bytes": (directory / WEIGHTS_FILE).stat().st_size,
        "weights_sha256": config.weights_sha256,
    }
    if loaded.table is not None:
        facts["table_sha256"] = sha256_file(directory / TABLE_FILE)
        facts["table"] = loaded.table.describe()
    facts["provenance"] = config.provenance
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    options = ", ".join(f"{name} {value}" for name, value in config.options.items())
    precision = config.precision
    widths = (
        f", search space {precision.search_space}" if network.precision.kind in ("cadyq", "cabm") else ""
    )
    weights = "" if precision.kind == "float" else f", {precision.weight_bits}-bit weights"
    ends = ", quantized ends" if precision.quantize_ends else ""
    lines = {
        "model": facts["directory"],
        "backbone": f"{facts['backbone']}, {options}",
        "precision": f"{precision.kind}{widths}{weights}{ends}",
        "size": f"{facts['parameters'] / 1e6:.2f} million parameters,"
        f" {facts['weights_bytes'] / 1e6:.2f} MB; {facts['macs_per_pixel'] / 1e6:.2f} million MACs a pixel",
        "sees": f"{facts['receptive_field']} input pixels to each side",
        "weights": f"sha256 {facts['weights_sha256']}",
    }
    _print(lines)
    if loaded.table is not None:
        _print({"table": f"sha256 {facts['table_sha256']}"})
        _print_table(loaded.table, _MOST_ROWS)
    provenance = flatten(config.provenance)
    # the table is printed above, and is part of the JSON
    _print({name: value for name, value in provenance.items() if "table" not in name.split(".")})


def show_table(
    table: TableArgument,
    all_rows: Annotated[bool, typer.Option("--all", help="Print every row, not a selection.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Describe an edge-to-bit table: what it was built for, and the bits by edge score.

    Example: cabm table show models/cabm --all
    """
    loaded = read_table(table)
    if as_json:
        typer.echo(json.dumps(loaded.describe(), indent=2, ensure_ascii=False))
        return
    _print({"model": f"{loaded.backbone} x{loaded.scale}, {len(loaded.layers)} adaptive layers"})
    _print_table(loaded, len(loaded.rows) if all_rows else _MOST_ROWS)
    _print({"bits of": f"sha256 {loaded.source_sha256 or 'unknown'}"})


def plot_table(
    table: TableArgument,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Figure to write: .png, .svg or .pdf.", show_default=False),
    ],
) -> None:
    """Draw the bits of every layer over the edge score.

    Example: cabm table plot models/cabm -o table.png
    """
    from cabm.cli.figure_file import check_figure_name, save_figure
    from cabm.reporting.bits import table_picture

    check_figure_name(output)
    save_figure(table_picture(read_table(table)), output)
    typer.echo(f"wrote {output}")


def read_table(where: str) -> EdgeToBitTable:
    """Read a table from its file, a model directory or a model's name.

    Raises:
        InputError: there is none, or the model has no table.
    """
    from cabm.checkpoints.find import find_model
    from cabm.checkpoints.model_directory import TABLE_FILE, read_config
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


def _print_table(table: EdgeToBitTable, most: int) -> None:
    summary = table.describe()
    rows = summary["by_score"]
    _print(
        {
            "tiles": f"{table.tile} x {table.tile}, stride {table.stride}",
            "rows": f"{len(rows)} by edge score, strategy {table.strategy}"
            + ("" if table.fab_cap is None else f", FAB below {table.fab_cap}"),
            "FAB": f"{summary['fab_lowest']:.2f} .. {summary['fab_highest']:.2f}",
        }
    )
    if table.bypass is not None:
        info = dict(table.bypass)
        part, below = info.pop("part"), info.pop("threshold")
        budget = ", ".join(f"{key} {_short(value)}" for key, value in info.items())
        what = f"bicubic in parts of {part} x {part} below edge peak {below:g}"
        _print({"bypass": what + (f" ({budget})" if budget else "")})
    chosen = rows
    if len(rows) > most:
        chosen = [rows[round(index * (len(rows) - 1) / (most - 1))] for index in range(most)]
        _print({"": f"{most} of the {len(rows)} rows:"})
    for row in chosen:
        layers = ", ".join(f"{count} at {width}" for width, count in row["layers_by_bits"].items())
        _print({"": f"score {row['from']:7.2f} and up  FAB {row['fab']:.2f}: {layers} bits"})


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _print(lines: dict[str, Any]) -> None:
    for name, value in lines.items():
        typer.echo(f"{name:10} {value}" if len(name) <= 10 else f"{name} {value}")
