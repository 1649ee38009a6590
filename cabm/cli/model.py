"""`cabm model show`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cabm.cli.table import MAX_ROWS, echo_facts, echo_table


def show_model(
    model: Annotated[
        str, typer.Argument(help="Model directory, or the name of a packaged model.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Describe a model: backbone, size, bits by edge score, training, hashes.

    Example: cabm model show models/cabm
    """
    from cabm.checkpoints.describe import model_facts, model_lines
    from cabm.checkpoints.find import find_model
    from cabm.checkpoints.model_directory import load_model
    from cabm.project.params import flatten

    loaded = load_model(find_model(model))
    facts = model_facts(loaded)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    echo_facts(model_lines(facts))
    if loaded.table is not None:
        echo_facts({"table": f"sha256 {facts['table_sha256']}"})
        echo_table(loaded.table, MAX_ROWS)
    provenance = flatten(loaded.config.provenance)
    # without the table, which is printed above
    echo_facts({name: value for name, value in provenance.items() if "table" not in name.split(".")})
