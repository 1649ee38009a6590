"""`cabm relocate-runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def relocate_runs(
    database: Annotated[Path, typer.Argument(help="MLflow's database.")] = Path("mlflow.db"),
) -> None:
    """Find runs and models again after a project was moved or copied.

    MLflow stores absolute paths. This command points them at the folder
    mlartifacts beside the database. The next stage that runs does the same.

    Example: cabm relocate-runs
    """
    import sqlite3

    from cabm.errors import InputError
    from cabm.tracking.relocation import ARTIFACTS, relocate

    try:
        changed = relocate(database)
    except sqlite3.Error as error:
        raise InputError(f"{database}: cannot be used as MLflow's database ({error})") from None
    folder = database.resolve().parent / ARTIFACTS
    typer.echo(
        f"{database}: {changed} locations changed to {folder}" if changed else f"{database}: up to date"
    )
