"""`cabm report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cabm.cli.outputs import OverwriteOption


def report(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for report.html, or an .html file.")
    ] = Path("report"),
    project: Annotated[
        Path, typer.Option(help="Directory with params.yaml and the output of the stages.")
    ] = Path(),
    overwrite: OverwriteOption = False,
) -> None:
    """Write an HTML page about what the pipeline has done so far.

    The page is a single file that opens without a network. A finished pipeline has written it to
    results/report.html.

    Example: cabm report -o report/ --overwrite
    """
    from cabm.cli.outputs import check_new_file
    from cabm.errors import PIPELINE, require

    require("cabm report", *PIPELINE)
    from cabm.reporting.page import report_path, write_report

    check_new_file(report_path(output), overwrite=overwrite)
    path = write_report(project, output)
    typer.echo(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
