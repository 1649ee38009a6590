"""`cabm model show`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cabm.cli.table import MAX_ROWS, echo_facts, echo_table

if TYPE_CHECKING:
    from cabm.checkpoints.model_directory import LoadedModel


def show_model(
    model: Annotated[
        str, typer.Argument(help="Model directory, or the name of a packaged model.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Describe a model: backbone, size, bits by edge score, training, hashes.

    Example: cabm model show models/cabm
    """
    from cabm.checkpoints.find import find_model
    from cabm.checkpoints.model_directory import load_model
    from cabm.project.params import flatten

    loaded = load_model(find_model(model))
    facts = _facts(loaded)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    config = loaded.config
    precision = config.precision
    options = ", ".join(f"{name} {value}" for name, value in config.options.items())
    widths = f", search space {precision.search_space}" if precision.kind in ("cadyq", "cabm") else ""
    weights = "" if precision.kind == "float" else f", {precision.weight_bits}-bit weights"
    ends = ", quantized ends" if precision.quantize_ends else ""
    echo_facts(
        {
            "model": facts["directory"],
            "backbone": f"{facts['backbone']}, {options}",
            "precision": f"{precision.kind}{widths}{weights}{ends}",
            "size": f"{facts['parameters'] / 1e6:.2f} million parameters, "
            f"{facts['weights_bytes'] / 1e6:.2f} MB; "
            f"{facts['macs_per_pixel'] / 1e6:.2f} million MACs per input pixel",
            "sees": f"{facts['receptive_field']} input pixels to each side",
            "weights": f"sha256 {facts['weights_sha256']}",
        }
    )
    if loaded.table is not None:
        echo_facts({"table": f"sha256 {facts['table_sha256']}"})
        echo_table(loaded.table, MAX_ROWS)
    provenance = flatten(config.provenance)
    # without the table, which is printed above
    echo_facts({name: value for name, value in provenance.items() if "table" not in name.split(".")})


def _facts(loaded: LoadedModel) -> dict[str, Any]:
    """Return the facts about a model as JSON values."""
    from cabm.checkpoints.model_directory import TABLE_FILE, WEIGHTS_FILE
    from cabm.files import sha256_file

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
    return facts | {"provenance": config.provenance}
