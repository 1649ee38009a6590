"""`cabm import-checkpoint`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cabm.cli.outputs import OverwriteOption


class CheckpointKind(StrEnum):
    """The method that a checkpoint was trained with."""

    float = "float"
    pams = "pams"
    cadyq = "cadyq"
    cabm = "cabm"


def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="Published checkpoint, .pt, .pth or .pth.tar.")],
    backbone: Annotated[str, typer.Option(help="edsr, srresnet, idn or carn.")],
    kind: Annotated[CheckpointKind, typer.Option(help="Method of the checkpoint.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model directory to write.")],
    scale: Annotated[int, typer.Option(min=2, max=4, help="Scale factor.")] = 4,
    table: Annotated[Path | None, typer.Option(help="Edge-to-bit table, for --kind cabm.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Turn a published checkpoint (EDSR, CARN, IDN, PAMS, CADyQ, CABM) into a model directory.

    Example: cabm import-checkpoint edsr_baseline_x4.pt --backbone edsr --kind float -o models/edsr
    """
    from cabm.checkpoints.model_directory import save_model
    from cabm.checkpoints.released import import_released, read_released_file
    from cabm.cli.outputs import check_model_folder
    from cabm.errors import InputError
    from cabm.files import sha256_file
    from cabm.tables.table import EdgeToBitTable

    if (table is not None) != (kind == CheckpointKind.cabm):
        raise InputError("--kind cabm needs --table, and other kinds take none")
    check_model_folder(output, overwrite=overwrite)
    loaded_table = None if table is None else EdgeToBitTable.load(table)
    model = import_released(backbone, kind.value, read_released_file(file), scale)
    if loaded_table is not None:
        loaded_table.check(**model.facts.table_fit)
    provenance = {"imported_from": file.name, "sha256": sha256_file(file)}
    save_model(output, model, table=loaded_table, provenance=provenance)
    typer.echo(f"wrote {output}: {backbone} x{scale}, {kind.value}, {model.options}")
