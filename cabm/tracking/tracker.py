"""The records of a run: metrics, params, tags, tables and figures."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cabm.project.params import flat_texts
from cabm.tracking.experiment import show_metrics
from cabm.tracking.outbox import RECORD_BYTES, Outbox
from cabm.tracking.session import Metric, Session, clean_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")


class Tracker:
    """Records one run. No method waits for the store or raises its errors, except `call`."""

    def __init__(self, outbox: Outbox[Session] | None) -> None:
        self._outbox = outbox

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers or scalar tensors at a training step."""
        if self._outbox:
            self._outbox.put_records(_points(values, step))

    def pipeline_metrics(self, values: Mapping[str, float], *, shown: Sequence[str] = ()) -> None:
        """Record numbers on the pipeline's run, to compare pipelines by.

        Args:
            values: the numbers.
            shown: names of those that MLflow's view of all pipelines has as columns.
        """
        points, columns = _points(values, 0), [clean_name(name) for name in shown]

        def send(session: Session) -> None:
            if session.pipeline is None:
                return
            session.pipeline.log_metrics(points)
            if columns:
                show_metrics(session.client, session.experiment_id, columns)

        self._put(send)

    def pipeline_figure(self, name: str, figure: Figure) -> None:
        """Show a matplotlib figure on the pipeline's run, and beside those of other pipelines."""
        if self._outbox is None:
            return
        content = _rendered(figure)

        def send(session: Session) -> None:
            if session.pipeline is not None:
                session.pipeline.log_image(name, content)

        self._put(send, len(content))

    def params(self, values: Mapping[str, Any]) -> None:
        """Record nested params under dotted names; a param keeps its first value."""
        flat = flat_texts(values)
        self._put(lambda session: session.log_params(flat))

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags; a later value replaces an earlier one."""
        self._put(lambda session: session.log_tags(values))

    def dict(self, name: str, value: Any) -> None:
        """Store a value as JSON in the artifact ``name`` (``.json`` unless it has a suffix)."""
        self._artifact(name, ".json", lambda: json.dumps(_plain(value), indent=2).encode())

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store rows as a table that MLflow's pages show; the rows' keys are the columns."""
        columns = list({column: None for row in rows for column in row})
        data = [[row.get(column) for column in columns] for row in rows]
        path = self._artifact(
            name, ".json", lambda: json.dumps(_plain({"columns": columns, "data": data})).encode()
        )
        self._put(lambda session: session.mark_table(path))

    def figure(self, name: str, figure: Figure) -> None:
        """Store a matplotlib figure as the artifact ``name`` (``.png`` unless it has a suffix)."""

        suffix = PurePosixPath(name).suffix.removeprefix(".") or "png"
        self._artifact(name, ".png", lambda: _rendered(figure, suffix))

    def call(
        self, function: Callable[[Any, str], T], wait_s: float, patience_s: float = math.inf
    ) -> T | None:
        """Return ``function(MlflowClient, run id)``, or None if the store does not answer in time.

        Exceptions of the function are raised here.

        Args:
            function: runs in the background thread, after all earlier records.
            wait_s: most seconds to wait for the result.
            patience_s: most seconds to wait for a store that does not answer.
        """
        result: Future[T] = Future()

        def job(session: Session) -> None:
            try:
                result.set_result(function(session.client, session.run_id))
            except Exception as error:
                result.set_exception(error)

        if self._outbox is None or not self._put(job):
            return None
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and self._outbox.silence_s < patience_s:
            wait([result], min(0.2, wait_s))
            if result.done():
                return result.result()
        return None

    def _put(self, job: Callable[[Session], None], size: int = RECORD_BYTES) -> bool:
        return self._outbox is not None and self._outbox.put_job(job, size)

    def _artifact(self, name: str, suffix: str, encode: Callable[[], bytes]) -> str:
        path = name if PurePosixPath(name).suffix else name + suffix
        if self._outbox:
            content = encode()
            self._put(lambda session: session.log_artifact(path, content), len(content))
        return path


class NullTracker(Tracker):
    """A tracker that records nothing."""

    def __init__(self) -> None:
        super().__init__(None)


def _points(values: Mapping[str, float], step: int) -> list[Metric]:
    now = int(time.time() * 1000)
    return [(clean_name(name), float(value), now, int(step)) for name, value in values.items()]


def _rendered(figure: Figure, suffix: str = "png") -> bytes:
    """Return a figure as a file; at once, because the caller may change it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, bbox_inches="tight")
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: NumPy scalars as numbers, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
