"""`cabm report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for report.html, or an .html file.")
    ] = Path("report"),
    project: Annotated[
        Path, typer.Option(help="Directory with params.yaml and the output of the stages.")
    ] = Path(),
) -> None:
    """Write an HTML page about what the pipeline has done so far.

    The page is a single file that opens without a network. A finished pipeline has written it to
    results/report.html.

    Example: cabm report -o report/
    """
    from cabm.reporting.page import write_report

    path = write_report(project, output)
    typer.echo(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
