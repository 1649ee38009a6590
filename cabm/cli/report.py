"""`cabm report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder that gets report.html, or an .html file.")
    ] = Path("report"),
    project: Annotated[
        Path, typer.Option(help="Directory with params.yaml and the stages' files.")
    ] = Path(),
) -> None:
    """Write one HTML page on what the pipeline's stages have made so far.

    The page is complete in itself: it can be sent by mail and opens without a network. A finished
    pipeline has it as results/report.html.

    Example: cabm report -o report/
    """
    from cabm.reporting.page import write_report

    path = write_report(project, output)
    typer.echo(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
