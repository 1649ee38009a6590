"""Experiment tracking with MLflow; the only module that imports it.

Each computing stage is one run under the run of its pipeline. Everything is sent from a background
thread: a store that is absent, wrong, slow or lost costs records and one warning, never a training.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cabm.outbox import Outbox, Trouble
from cabm.provenance import code_tags, flatten_params, params_hash, project_root

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.tracking import MlflowClient

T = TypeVar("T")

MAX_PARAM_CHARS = 6000  # MLflow's limits
MAX_TAG_CHARS = 8000
MAX_PARAMS_PER_REQUEST = 100
EXIT_WAIT_S = 30.0  # how long the end of a stage may wait for a store that is answering
LOCK_WAIT_S = 60.0

# For our requests, unless the user has set them: MLflow's own values wait for minutes.
_CLIENT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# They print tracebacks and retries of their own for what we report in one line.
_QUIET_LOGGERS = ("alembic", "mlflow.store.db.utils", "urllib3.connectionpool")
_PERMANENT = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "ENDPOINT_NOT_FOUND",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "INVALID_STATE",
)

logger = logging.getLogger(__name__)


class TrackingSettings(BaseModel):
    """Where runs are recorded, and how often."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = True
    """Record runs at all."""
    experiment: str = Field("cabm", min_length=1, max_length=500)
    """The MLflow experiment that the runs belong to."""
    log_every: int = Field(50, ge=1)
    """Training steps between two records of the curves."""
    uri: str | None = None
    """The store; null: MLFLOW_TRACKING_URI, else ``mlflow.db`` beside ``dvc.yaml``."""


@dataclass
class _Session:
    """An open run."""

    client: MlflowClient
    run_id: str
    parent_id: str
    known_params: dict[str, str] = field(default_factory=dict)


class Tracker:
    """Records of one run. Every method returns at once, and none of them raises for the store."""

    def __init__(self, outbox: Outbox[_Session] | None) -> None:
        self._outbox = outbox

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers (scalar tensors too) at a training step."""
        if self._outbox:
            now = int(time.time() * 1000)
            self._outbox.put_records(
                [(_clean(name), float(value), now, int(step)) for name, value in values.items()]
            )

    def params(self, values: Mapping[str, Any]) -> None:
        """Record nested params under dotted names. The first value of a name stays."""
        flat = flatten_params(values)
        self._put(lambda session: _log_params(session, flat))

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags; a later value replaces an earlier one."""
        self._put(lambda session: _log_tags(session, session.run_id, values))

    def text(self, name: str, text: str) -> None:
        """Store a text as the artifact ``name`` (``.txt`` unless it has a suffix)."""
        self._artifact(name, ".txt", lambda: text.encode())

    def dict(self, name: str, value: Any) -> None:
        """Store JSON as the artifact ``name`` (``.json`` unless it has a suffix)."""
        self._artifact(name, ".json", lambda: json.dumps(_plain(value), indent=2).encode())

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store rows as a table that the MLflow pages show; the columns are the rows' keys."""
        columns = list({column: None for row in rows for column in row})
        data = [[row.get(column) for column in columns] for row in rows]
        path = self._artifact(
            name, ".json", lambda: json.dumps(_plain({"columns": columns, "data": data})).encode()
        )
        self._put(lambda session: _mark_table(session, path))

    def figure(self, name: str, figure: Figure) -> None:
        """Store a matplotlib figure as the artifact ``name`` (``.png`` unless it has a suffix)."""

        def render() -> bytes:  # now: the caller may close the figure next
            buffer = io.BytesIO()
            suffix = PurePosixPath(name).suffix.removeprefix(".") or "png"
            figure.savefig(buffer, format=suffix, bbox_inches="tight")
            return buffer.getvalue()

        self._artifact(name, ".png", render)

    def image(self, name: str, image: np.ndarray) -> None:
        """Store an image, (H, W, 3) or (H, W) uint8, as the artifact ``name``, a PNG file."""

        def encode() -> bytes:
            from PIL import Image

            assert image.dtype == np.uint8, f"image {name}: expected uint8, got {image.dtype}"
            buffer = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG")
            return buffer.getvalue()

        self._artifact(name, ".png", encode)

    def call(self, function: Callable[[MlflowClient, str], T], wait_s: float) -> T | None:
        """Return ``function(client, run id)``, or None when the store has no answer in time.

        What the function itself raises is raised here.
        """
        result: Future[T] = Future()

        def job(session: _Session) -> None:
            try:
                result.set_result(function(session.client, session.run_id))
            except Exception as error:
                result.set_exception(error)

        if not self._put(job):
            return None
        try:
            return result.result(wait_s)
        except TimeoutError:
            return None

    def _put(self, job: Callable[[_Session], None], size: int = 400) -> bool:
        return self._outbox is not None and self._outbox.put_job(job, size)

    def _artifact(self, name: str, suffix: str, encode: Callable[[], bytes]) -> str:
        path = name if PurePosixPath(name).suffix else name + suffix
        if self._outbox:
            content = encode()
            self._put(lambda session: _log_artifact(session, path, content), len(content))
        return path


class NullTracker(Tracker):
    """A tracker that records nothing."""

    def __init__(self) -> None:
        super().__init__(None)


@contextmanager
def open_run(
    settings: TrackingSettings,
    *,
    stage: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    pipeline_key: str,
    data_hash: str | None = None,
) -> Iterator[Tracker]:
    """Record the body of the ``with`` block as one run under its pipeline's run.

    The parent is found by ``pipeline_key`` (under ``dvc exp run``: by the experiment's name) or made.
    A stage that was interrupted under the same key continues its own run. The run ends FINISHED,
    KILLED (Ctrl-C) or FAILED (any other exception), and so does the parent.

    Args:
        settings: the store; with ``enabled: false`` the tracker records nothing.
        stage: the stage's name.
        params: nested params, recorded under dotted names; their hash becomes a tag.
        tags: further tags.
        pipeline_key: names the state of params and code that the pipeline's runs share.
        data_hash: names the data; becomes a tag.
    """
    if not settings.enabled:
        yield NullTracker()
        return
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    uri = tracking_uri(settings)
    name = os.environ.get("DVC_EXP_NAME") or f"pipeline {pipeline_key[:10]}"
    key = os.environ.get("DVC_EXP_NAME") or pipeline_key
    all_tags = {"experiment": name, **code_tags(), "params.sha256": params_hash(params)}
    all_tags |= {"data.sha256": data_hash} if data_hash else {}
    all_tags |= {**tags, "stage": stage, "pipeline.key": key}

    with ExitStack() as stack:
        stack.enter_context(_client_environment())
        stack.enter_context(_quiet_loggers())
        try:
            import mlflow.tracking  # noqa: F401  (here, not in the thread: importing has locks)
        except ImportError as error:
            logger.warning("runs are not recorded: mlflow cannot be imported (%s)", error)
            yield NullTracker()
            return
        outbox: Outbox[_Session] = Outbox(
            connect=lambda: _connect(uri, settings.experiment, name, key, stage, all_tags),
            send=_log_metrics,
            is_transient=_is_transient,
            probe=lambda session: session.client.get_run(session.run_id),
            warn=lambda trouble, error: logger.warning(_warning(trouble, error, uri)),
        )
        tracker = Tracker(outbox)
        tracker.params(params)
        status = "FAILED"
        try:
            yield tracker
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except SystemExit as exit_:
            status = "FAILED" if exit_.code else "FINISHED"
            raise
        except BaseException as error:
            tracker.tags({"error": f"{type(error).__name__}: {error}"[:500]})
            raise
        finally:
            outbox.put_job(lambda session: _end(session, status))
            num_lost = outbox.close(EXIT_WAIT_S)
            if num_lost:
                logger.warning("%d records did not reach MLflow at %s", num_lost, _no_secret(uri))


def tracking_uri(settings: TrackingSettings) -> str:
    """Return the store's URI: of the settings, of MLFLOW_TRACKING_URI, or the default database.

    A relative SQLite path counts from the repository (see ``cabm.provenance.project_root``), so
    that experiments which DVC runs in a copy of it land in the same store.
    """
    uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{(project_root() / uri.removeprefix('sqlite:///')).resolve()}"
    return uri


def _connect(
    uri: str, experiment: str, name: str, key: str, stage: str, tags: Mapping[str, Any]
) -> _Session:
    """Open the experiment, the pipeline's run and the stage's run; make what is not there."""
    from mlflow.tracking import MlflowClient

    with ExitStack() as stack:
        location = None
        if uri.startswith("sqlite:///"):
            database = Path(uri.removeprefix("sqlite:///"))
            location = (database.parent / "mlartifacts" / _clean(experiment)).as_uri()
            stack.enter_context(_database_lock(database))
        client = MlflowClient(tracking_uri=uri)
        experiment_id = _experiment(client, experiment, location)
        parent_id = _get_or_create_run(
            client, experiment_id, name, {"pipeline.key": key, "stage": "pipeline"}, keep=True
        )
        link = {"pipeline.key": key, "stage": stage, "mlflow.parentRunId": parent_id}
        run_id = _get_or_create_run(client, experiment_id, f"{name} / {stage}", link, keep=False)
    session = _Session(client, run_id, parent_id)
    session.known_params |= client.get_run(run_id).data.params
    source = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    source |= {"mlflow.source.git.commit": tags["baseline"]} if "baseline" in tags else {}
    _log_tags(session, run_id, {**source, **tags})
    pipeline = ("experiment", "baseline", "dirty")
    _log_tags(session, parent_id, {name: tags[name] for name in pipeline if name in tags})
    return session


def _experiment(client: MlflowClient, name: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # somebody was faster
    if found is None or found.lifecycle_stage != "active":
        message = f"experiment {name!r} was deleted; restore it, or name another in params"
        raise MlflowException.invalid_parameter_value(message)
    return found.experiment_id


def _get_or_create_run(
    client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str], *, keep: bool
) -> str:
    """Return the newest run with these tags, opened again; a finished one only if ``keep``."""
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs([experiment_id], wanted, max_results=1)
    if found and (keep or found[0].info.status != "FINISHED"):
        client.update_run(found[0].info.run_id, status="RUNNING")
        return found[0].info.run_id
    return client.create_run(experiment_id, tags=dict(tags), run_name=name).info.run_id


def _end(session: _Session, status: str) -> None:
    session.client.set_terminated(session.run_id, status)
    session.client.set_terminated(session.parent_id, status)


def _log_metrics(session: _Session, records: Sequence[tuple[str, float, int, int]]) -> None:
    from mlflow.entities import Metric

    session.client.log_batch(session.run_id, metrics=[Metric(*record) for record in records])


def _log_params(session: _Session, flat: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    cut = {_clean(name): value[:MAX_PARAM_CHARS] for name, value in flat.items()}
    known = session.known_params
    new = [Param(name, value) for name, value in cut.items() if name not in known]
    for start in range(0, len(new), MAX_PARAMS_PER_REQUEST):
        session.client.log_batch(session.run_id, params=new[start : start + MAX_PARAMS_PER_REQUEST])
    # MLflow refuses another value; a run that goes on with one says so in a tag.
    changed = [
        f"{name}: {known[name]} -> {value}"
        for name, value in cut.items()
        if known.get(name, value) != value
    ]
    if changed:
        _log_tags(session, session.run_id, {"params.changed": "\n".join(changed)})
    known |= {param.key: param.value for param in new}


def _log_tags(session: _Session, run_id: str, tags: Mapping[str, Any]) -> None:
    from mlflow.entities import RunTag

    items = [RunTag(_clean(name), str(value)[:MAX_TAG_CHARS]) for name, value in tags.items()]
    session.client.log_batch(run_id, tags=items)


def _log_artifact(session: _Session, path: str, content: bytes) -> None:
    target = PurePosixPath(path)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / target.name
        file.write_bytes(content)
        parent = str(target.parent)
        session.client.log_artifact(session.run_id, str(file), None if parent == "." else parent)


def _mark_table(session: _Session, path: str) -> None:
    # The tag by which MLflow's pages know a table (MlflowClient.log_table would append the rows
    # again whenever a stage is repeated).
    tags = session.client.get_run(session.run_id).data.tags
    tables = json.loads(tags.get("mlflow.loggedArtifacts", "[]"))
    entry = {"path": path, "type": "table"}
    if entry not in tables:
        value = json.dumps([*tables, entry])
        session.client.set_tag(session.run_id, "mlflow.loggedArtifacts", value)


@contextmanager
def _database_lock(database: Path) -> Iterator[None]:
    """Let one process at a time make the database, the experiment and the pipeline's run."""
    from filelock import FileLock

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}-open.lock", timeout=LOCK_WAIT_S):
        # MLflow repeats for minutes what SQLite knows at once: not writable, not a database.
        connection = sqlite3.connect(database, timeout=LOCK_WAIT_S)
        try:
            connection.execute("PRAGMA user_version").fetchone()
        finally:
            connection.close()
        yield


def _is_transient(error: Exception) -> bool:
    """Whether waiting may help: a lost connection, an overloaded server, a locked database."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code not in _PERMANENT and "Invalid url" not in str(error)
    return isinstance(error, TimeoutError | ConnectionError) or "locked" in str(error)


def _warning(trouble: Trouble, error: Exception | None, uri: str) -> str:
    what = {
        "unreachable": "MLflow does not answer; records wait for it, the run goes on",
        "refused": "MLflow cannot be used; the run goes on unrecorded",
        "rejected": "MLflow refused a record, which is dropped",
        "full": "MLflow is too slow; further records are dropped",
    }[trouble]
    reason = f": {type(error).__name__}: {error}" if error else ""
    return _no_secret(f"{what} ({uri}{reason[:300]})".replace("\n", " "))


def _no_secret(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//", text)


def _clean(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it: NumPy scalars as numbers, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


@contextmanager
def _client_environment() -> Iterator[None]:
    ours = {name: value for name, value in _CLIENT_ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def _quiet_loggers() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in _QUIET_LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
