"""The tracking store: its address, its lock, and the meaning of its errors."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cabm.project.paths import project_root
from cabm.tracking.outbox import Trouble

LOCK_WAIT_S = 60.0
# Unless the user has set them; MLflow's defaults wait for minutes.
_CLIENT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# These print tracebacks and retries; we report one line instead.
QUIET_LOGGERS = ("alembic", "mlflow.pyfunc", "mlflow.store.db.utils", "urllib3.connectionpool")
_SQLITE = "sqlite:///"
# MLflow's error codes that a retry does not change.
_PERMANENT = frozenset(
    {
        "INVALID_PARAMETER_VALUE",
        "BAD_REQUEST",
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_DOES_NOT_EXIST",
        "ENDPOINT_NOT_FOUND",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "INVALID_STATE",
    }
)
# Texts of errors without a code of their own: no server of that name, or one that is not MLflow.
_NOT_MLFLOW = ("Invalid url", "not in a valid JSON format")


def resolve_uri(uri: str | None) -> str:
    """Return ``uri``, else MLFLOW_TRACKING_URI, else the database ``mlflow.db``.

    A relative SQLite path is relative to `project_root`, so that experiments which DVC runs in a copy of
    the repository use the same store.
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
    """Let one process at a time into the block, because only one may create the schema.

    Raises:
        OSError, sqlite3.Error: the file is not a database. MLflow would retry for minutes.
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
    """Return a text without the ``user:password@`` of its URIs."""
    return re.sub(r"//[^/@\s]+@", "//", text)


def is_transient(error: Exception) -> bool:
    """Whether a retry may help: a lost connection, an overloaded server, a locked database."""
    code = getattr(error, "error_code", None)  # MlflowException's
    if code is not None:
        return code not in _PERMANENT and not any(text in str(error) for text in _NOT_MLFLOW)
    return isinstance(error, TimeoutError | ConnectionError) or "locked" in str(error)


def describe_trouble(trouble: Trouble, error: Exception | None, uri: str) -> str:
    """Return one line for the user, without passwords."""
    problem = {
        "unreachable": "MLflow does not answer; records are kept and sent later",
        "refused": "MLflow cannot be used; the run is not recorded",
        "rejected": "MLflow refused a record; it is dropped",
        "full": "MLflow is too slow; further records are dropped",
    }[trouble]
    reason = f": {type(error).__name__}: {error}" if error else ""
    return without_password(f"{problem} ({uri}{reason[:300]})".replace("\n", " "))


@contextmanager
def impatient_client() -> Iterator[None]:
    """Make MLflow's client fail early and quietly inside the block."""
    ours = {name: value for name, value in _CLIENT_ENVIRONMENT.items() if name not in os.environ}
    levels = {name: logging.getLogger(name).level for name in QUIET_LOGGERS}
    os.environ.update(ours)
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name in ours:
            os.environ.pop(name, None)
