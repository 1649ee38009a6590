"""`cabm export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Target(StrEnum):
    """What to write."""

    onnx = "onnx"
    packed = "packed"


def export(
    model: Annotated[str, typer.Argument(help="Model directory, or the name of a packaged model.")],
    to: Annotated[Target, typer.Option("--to", help="onnx: a file per row of bits. packed: int8 weights.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
) -> None:
    """Write a quantized model for other runtimes, or with its weights as int8 codes.

    Example: cabm export models/cabm --to onnx -o exported/
    """
    from cabm.checkpoints.export import export_onnx, export_onnx_rows
    from cabm.checkpoints.find import find_model
    from cabm.checkpoints.model_directory import load_model, save_model
    from cabm.cli.outputs import replaceable_folder
    from cabm.errors import InputError

    loaded = load_model(find_model(model))
    replaceable_folder(output)
    if to is Target.packed:
        provenance = loaded.config.provenance
        save_model(output, loaded.model, table=loaded.table, provenance=provenance, packed=True)
    elif loaded.table is not None:
        export_onnx_rows(loaded.model, output, loaded.table.rows)
    elif loaded.model.precision.kind == "pams":
        export_onnx(loaded.model, output / "model.onnx")
    else:
        raise InputError(
            f"{model}: a {loaded.model.precision.kind} model has no fixed bits to export; "
            "give a pams or cabm model"
        )
    size = sum(file.stat().st_size for file in output.iterdir())
    typer.echo(f"wrote {output}: {len(list(output.iterdir()))} files, {size / 1e6:.2f} MB")
