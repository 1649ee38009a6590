"""What a stage records about its run: numbers, params, tags, tables, figures and images."""

from __future__ import annotations

import io
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from cabm.project.params import flat_texts
from cabm.tracking.outbox import RECORD_BYTES, Outbox

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
Metric = tuple[str, float, int, int]
"""Name, value, milliseconds since 1970, step."""


class RunSession(Protocol):
    """An open run in a store. Every method may take long, and may raise."""

    client: Any
    run_id: str
    pipeline: RunSession | None
    """The run of the whole pipeline, in that of a stage."""

    def log_metrics(self, metrics: Sequence[Metric]) -> None:
        """Add points to the curves."""

    def log_params(self, params: Mapping[str, str]) -> None:
        """Add params that the run does not have yet."""

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""

    def log_artifact(self, path: str, content: bytes) -> None:
        """Store a file under the run."""

    def mark_table(self, path: str) -> None:
        """Say that the artifact at ``path`` is a table."""


@dataclass(frozen=True)
class ServedModel:
    """What MLflow needs to load and serve a directory, without pickling anything.

    Attributes:
        name: the model's name.
        loader_module: the module whose ``_load_pyfunc(data directory, config)`` returns an object
            with ``predict``.
        data: the directory that it loads.
        code: the package of ``loader_module``; a copy goes with the model.
        requirements: the packages that it imports, for pip.
        inputs, outputs: names of the text columns that go in and come out.
        example: an input, by column.
        config: settings that may be changed when the model is loaded.
    """

    name: str
    loader_module: str
    data: Path
    code: Path
    requirements: Sequence[str]
    inputs: Sequence[str]
    outputs: Sequence[str]
    example: Mapping[str, str]
    config: Mapping[str, Any]


class Tracker:
    """Records of one run. Every method returns at once, and none of them raises for the store."""

    def __init__(self, outbox: Outbox[RunSession] | None) -> None:
        self._outbox = outbox

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers (scalar tensors too) at a training step."""
        if self._outbox:
            self._outbox.put_records(_points(values, step))

    def pipeline_metrics(self, values: Mapping[str, float]) -> None:
        """Record the numbers that pipelines are compared by, on the run of the whole pipeline."""
        points = _points(values, 0)

        def send(session: RunSession) -> None:
            if session.pipeline is not None:
                session.pipeline.log_metrics(points)

        self._put(send)

    def params(self, values: Mapping[str, Any]) -> None:
        """Record nested params under dotted names. The first value of a name stays."""
        flat = flat_texts(values)
        self._put(lambda session: session.log_params(flat))

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags; a later value replaces an earlier one."""
        self._put(lambda session: session.log_tags(values))

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
        self._put(lambda session: session.mark_table(path))

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

    def call(
        self, function: Callable[[Any, str], T], wait_s: float, patience_s: float = math.inf
    ) -> T | None:
        """Return ``function(MlflowClient, run id)``, or None when the store has no answer in time.

        What the function itself raises is raised here.

        Args:
            function: runs in the background thread, after all that was recorded before.
            wait_s: for how long it may take.
            patience_s: for how long the store may be gone.
        """
        result: Future[T] = Future()

        def job(session: RunSession) -> None:
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

    def _put(self, job: Callable[[RunSession], None], size: int = RECORD_BYTES) -> bool:
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


def clean_name(name: str) -> str:
    """Return a name with underscores where it has characters that MLflow refuses."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _points(values: Mapping[str, float], step: int) -> list[Metric]:
    now = int(time.time() * 1000)
    return [(clean_name(name), float(value), now, int(step)) for name, value in values.items()]


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
