"""The address of the tracking store."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cabm.provenance import project_root

LOCK_WAIT_S = 60.0
_SQLITE = "sqlite:///"


def resolve_uri(uri: str | None) -> str:
    """Return ``uri``, else MLFLOW_TRACKING_URI, else the database ``mlflow.db``.

    A relative SQLite path counts from the repository (see ``cabm.provenance.project_root``), so
    that experiments which DVC runs in a copy of it land in the same store.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db"
    if uri.startswith(_SQLITE):
        return f"{_SQLITE}{(project_root() / uri.removeprefix(_SQLITE)).resolve()}"
    return uri


def database_path(uri: str) -> Path | None:
    """Return the file behind a SQLite URI; None for any other store."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


@contextmanager
def lock_database(database: Path) -> Iterator[None]:
    """Let one process at a time into the block: who makes a schema must be alone.

    Raises:
        OSError, sqlite3.Error: this cannot be a database. MLflow would repeat for minutes what
            SQLite knows at once.
    """
    from filelock import FileLock

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}-open.lock", timeout=LOCK_WAIT_S):
        connection = sqlite3.connect(database, timeout=LOCK_WAIT_S)
        try:
            connection.execute("PRAGMA user_version").fetchone()
        finally:
            connection.close()
        yield


def without_password(text: str) -> str:
    """Return a text with the ``user:password@`` of its URIs left out."""
    return re.sub(r"//[^/@\s]+@", "//", text)
