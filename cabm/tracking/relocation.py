"""MLflow's database holds absolute paths: make them right after a project was moved or copied."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cabm.errors import InputError

ARTIFACTS = "mlartifacts"
"""Folder of the artifacts, beside the database."""

# Tables and columns of MLflow 3
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def relocate(database: Path) -> int:
    """Point a database at the artifacts beside it, and return how many locations that changed.

    A location in a folder `ARTIFACTS` elsewhere is replaced by the same one here, unless only the other
    exists.

    Raises:
        InputError: there is no such file.
        sqlite3.Error: it is not a database, or locked.
    """
    if not database.is_file():
        raise InputError(f"{database}: no such file; name the database of MLflow")
    here = (database.resolve().parent / ARTIFACTS).as_uri()
    changed = 0
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        for table, column in _PLACES:
            if table not in tables:
                continue  # a new database
            locations = connection.execute(
                f"SELECT DISTINCT {column} FROM {table} WHERE {column} LIKE ?", (f"file:%/{ARTIFACTS}/%",)
            ).fetchall()
            for (old,) in locations:
                new = f"{here}/{old.rpartition(f'/{ARTIFACTS}/')[2]}"
                if new != old and (_exists(new) or not _exists(old)):
                    update = f"UPDATE {table} SET {column} = ? WHERE {column} = ?"
                    changed += connection.execute(update, (new, old)).rowcount
    return changed


def _exists(uri: str) -> bool:
    return Path(unquote(urlsplit(uri).path)).exists()
