"""`cabm export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cabm.cli.outputs import OverwriteOption


class Target(StrEnum):
    """Formats to export to."""

    onnx = "onnx"
    packed = "packed"


def export(
    model: Annotated[str, typer.Argument(help="Model directory, or name of a packaged model.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="ONNX file, or packed model directory.")],
    to: Annotated[
        Target,
        typer.Option(
            "--to", help="onnx: a file at one row of bits. packed: model directory with int8 weights."
        ),
    ] = Target.onnx,
    score: Annotated[
        float | None,
        typer.Option(
            min=0, help="ONNX: take the table's row for this edge score. Default: its median threshold."
        ),
    ] = None,
    bits: Annotated[
        str | None,
        typer.Option(help="ONNX: bits of all layers, such as 8, or of each layer, such as 4,6,8,8."),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a quantized model as ONNX at one row of bits, or as a model directory with int8 weights.

    The ONNX model takes images of any height and width. It upscales all of them at the same bits: the edge
    score of an image or tile does not change them. Bypass and contrast limit are not in it.

    Examples:

    cabm export edsr_x4 --score 20 -o model.onnx

    cabm export models/cabm --to packed -o small/
    """
    from cabm.checkpoints.export import choose_row, export_onnx
    from cabm.checkpoints.find import find_model
    from cabm.checkpoints.model_directory import load_model, save_model
    from cabm.cli.outputs import check_model_folder, check_new_file
    from cabm.errors import InputError
    from cabm.quant.levels import PAMS_BITS

    if to is Target.packed and (score is not None or bits is not None):
        raise InputError("--to packed keeps the whole table; omit --score and --bits")
    directory = find_model(model)
    if to is Target.onnx:
        check_new_file(output, directory.iterdir(), overwrite=overwrite)
    elif output.exists() and output.samefile(directory):
        raise InputError(f"{output}: is the model itself; name a new folder")
    else:
        check_model_folder(output, overwrite=overwrite)
    loaded = load_model(directory)
    if to is Target.packed:
        provenance = loaded.config.provenance
        save_model(output, loaded.model, table=loaded.table, provenance=provenance, packed=True)
        size = sum(file.stat().st_size for file in output.iterdir())
        typer.echo(f"wrote {output}: {size / 1e6:.2f} MB")
        return
    row = choose_row(loaded.model, loaded.table, score=score, bits=_widths(bits))
    export_onnx(loaded.model, output, row)
    mean = PAMS_BITS if row is None else sum(row) / len(row)
    typer.echo(f"wrote {output}: {output.stat().st_size / 1e6:.2f} MB, {mean:.2f} bits on average")


def _widths(bits: str | None) -> list[int] | None:
    """Return the numbers of ``--bits``."""
    from cabm.errors import InputError

    try:
        return None if bits is None else [int(width) for width in bits.split(",")]
    except ValueError:
        raise InputError(
            f"--bits {bits}: expected one width, or one per layer separated by commas"
        ) from None
