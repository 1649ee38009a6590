"""Experiment tracking with MLflow: every stage is a run below the run of its pipeline.

A background thread sends all records. A store that is missing, wrong, slow or lost costs records and one
warning, but never a training.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cabm.project.params import flat_texts
from cabm.project.sections import TrackingSettings
from cabm.tracking.outbox import Outbox
from cabm.tracking.provenance import code_tags, params_hash
from cabm.tracking.session import Session, clean_name, connect
from cabm.tracking.store import (
    describe_trouble,
    impatient_client,
    is_transient,
    resolve_uri,
    without_password,
)
from cabm.tracking.tracker import NullTracker, Tracker

EXIT_WAIT_S = 30.0  # most seconds that the end of a stage waits for a store that answers

logger = logging.getLogger(__name__)


@contextmanager
def open_run(
    settings: TrackingSettings,
    *,
    stage: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    pipeline_key: str,
    pipeline_title: str = "pipeline",
    pipeline_params: Mapping[str, Any] | None = None,
    data_hash: str | None = None,
) -> Iterator[Tracker]:
    """Record the body of the ``with`` block as one run below its pipeline's run.

    The pipeline's run is the run of this clone with the same ``pipeline_key`` (under ``dvc exp run``: with
    the experiment's name), or a new one. A stage that was interrupted under the same key continues its own
    run. Both runs end as FINISHED, KILLED (Ctrl-C) or FAILED (any other exception).

    Args:
        settings: the store; with ``enabled: false`` the tracker records nothing.
        stage: the stage's name.
        params: nested params, recorded under dotted names; their hash becomes a tag.
        tags: further tags.
        pipeline_key: identifies the params that all stages of a pipeline's run share.
        pipeline_title: first part of the name of the pipeline's run; the start of the key follows. Under
            ``dvc exp run`` the name is the experiment's.
        pipeline_params: nested params of the pipeline's run, to compare pipelines by.
        data_hash: hash of the data; becomes a tag.
    """
    if not settings.enabled:
        yield NullTracker()
        return
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    uri = resolve_uri(settings.uri)
    experiment = os.environ.get("DVC_EXP_NAME")
    name = experiment or f"{pipeline_title} {pipeline_key[:10]}"
    key = clean_name(experiment or pipeline_key)
    all_tags = {"experiment": name, **code_tags(), "params.sha256": params_hash(params)}
    all_tags |= {"data.sha256": data_hash} if data_hash else {}
    all_tags |= {**tags, "stage": stage, "pipeline.key": key}

    with impatient_client():
        try:
            import mlflow.tracking  # noqa: F401  (not in the thread: imports take locks)
        except ImportError as error:
            logger.warning("runs are not recorded: mlflow cannot be imported (%s)", error)
            yield NullTracker()
            return
        texts = flat_texts(pipeline_params or {})
        outbox: Outbox[Session] = Outbox(
            connect=lambda: connect(uri, settings.experiment, name, key, stage, all_tags, texts),
            send=Session.log_metrics,
            is_transient=is_transient,
            probe=lambda session: session.client.get_run(session.run_id),
            warn=lambda trouble, error: logger.warning(describe_trouble(trouble, error, uri)),
        )
        with _recorded(outbox, uri) as tracker:
            tracker.params(params)
            yield tracker


@contextmanager
def _recorded(outbox: Outbox[Session], uri: str) -> Iterator[Tracker]:
    """Yield a tracker, and end its run with the status of the block."""
    tracker = Tracker(outbox)
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
        outbox.put_job(lambda session: session.end(status))
        if num_lost := outbox.close(EXIT_WAIT_S):
            logger.warning("%d records did not reach MLflow at %s", num_lost, without_password(uri))
