"""Experiment tracking with MLflow; the only module that imports it.

Each computing stage is one run under the run of its pipeline. Everything is sent from a background
thread: a store that is absent, wrong, slow or lost costs records and one warning, never a training.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cabm.project.params import flat_texts
from cabm.project.sections import TrackingSettings
from cabm.tracking.outbox import Outbox
from cabm.tracking.provenance import clone_id, code_tags, params_hash
from cabm.tracking.store import (
    database_path,
    describe_trouble,
    impatient_client,
    is_transient,
    lock_database,
    resolve_uri,
    without_password,
)
from cabm.tracking.tracker import Metric, NullTracker, RunSession, ServedModel, Tracker, clean_name

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MAX_PARAM_CHARS = 6000  # MLflow's limits
MAX_TAG_CHARS = 8000
MAX_PARAMS_PER_REQUEST = 100
EXIT_WAIT_S = 30.0  # how long the end of a stage may wait for a store that is answering

__all__ = ["NullTracker", "Tracker", "bad_request", "log_pyfunc", "open_run"]

logger = logging.getLogger(__name__)


@dataclass
class _Session:
    """An open MLflow run; see ``cabm.tracking.tracker.RunSession``."""

    client: MlflowClient
    run_id: str
    pipeline: _Session | None = None
    known_params: dict[str, str] = field(default_factory=dict)

    def log_metrics(self, metrics: Sequence[Metric]) -> None:
        from mlflow import entities

        self.client.log_batch(self.run_id, metrics=[entities.Metric(*metric) for metric in metrics])

    def log_params(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        cut = {clean_name(name): value[:MAX_PARAM_CHARS] for name, value in params.items()}
        known = self.known_params
        new = [Param(name, value) for name, value in cut.items() if name not in known]
        for start in range(0, len(new), MAX_PARAMS_PER_REQUEST):
            chunk = new[start : start + MAX_PARAMS_PER_REQUEST]
            self.client.log_batch(self.run_id, params=chunk)
            known |= {param.key: param.value for param in chunk}
        # MLflow refuses another value; a run that goes on with one says so in a tag.
        changed = [
            f"{name}: {known[name]} -> {value}" for name, value in cut.items() if known[name] != value
        ]
        if changed:
            self.log_tags({"params.changed": "\n".join(changed)})

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        items = [RunTag(clean_name(name), str(value)[:MAX_TAG_CHARS]) for name, value in tags.items()]
        self.client.log_batch(self.run_id, tags=items)

    def log_artifact(self, path: str, content: bytes) -> None:
        target = PurePosixPath(path)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / target.name
            file.write_bytes(content)
            parent = str(target.parent)
            self.client.log_artifact(self.run_id, str(file), None if parent == "." else parent)

    def mark_table(self, path: str) -> None:
        # The tag by which MLflow's pages know a table (MlflowClient.log_table would append the
        # rows again whenever a stage is repeated).
        tags = self.client.get_run(self.run_id).data.tags
        tables = json.loads(tags.get("mlflow.loggedArtifacts", "[]"))
        entry = {"path": path, "type": "table"}
        if entry not in tables:
            self.log_tags({"mlflow.loggedArtifacts": json.dumps([*tables, entry])})

    def end(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status)
        if self.pipeline is not None:
            self.pipeline.end(status)


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
    """Record the body of the ``with`` block as one run under its pipeline's run.

    The parent is found by ``pipeline_key`` (under ``dvc exp run``: by the experiment's name) among the runs
    of this clone, or made. A stage that was interrupted under the same key continues its own run. The run
    ends FINISHED, KILLED (Ctrl-C) or FAILED (any other exception), and so does the parent.

    Args:
        settings: the store; with ``enabled: false`` the tracker records nothing.
        stage: the stage's name.
        params: nested params, recorded under dotted names; their hash becomes a tag.
        tags: further tags.
        pipeline_key: names the state of params and code that the pipeline's runs share.
        pipeline_title: what the pipeline's run is called, before the beginning of its key. Under
            ``dvc exp run`` the name is the experiment's.
        pipeline_params: nested params of the pipeline's run, by which pipelines are compared.
        data_hash: names the data; becomes a tag.
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
            import mlflow.tracking  # noqa: F401  (here, not in the thread: importing has locks)
        except ImportError as error:
            logger.warning("runs are not recorded: mlflow cannot be imported (%s)", error)
            yield NullTracker()
            return
        outbox: Outbox[RunSession] = Outbox(
            connect=lambda: _connect(
                uri, settings.experiment, name, key, stage, all_tags, flat_texts(pipeline_params or {})
            ),
            send=_Session.log_metrics,
            is_transient=is_transient,
            probe=lambda session: session.client.get_run(session.run_id),
            warn=lambda trouble, error: logger.warning(describe_trouble(trouble, error, uri)),
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
            outbox.put_job(lambda session: session.end(status))
            if num_lost := outbox.close(EXIT_WAIT_S):
                logger.warning("%d records did not reach MLflow at %s", num_lost, without_password(uri))


def _connect(
    uri: str,
    experiment: str,
    name: str,
    key: str,
    stage: str,
    tags: Mapping[str, Any],
    pipeline_params: Mapping[str, str],
) -> _Session:
    """Open the experiment, the pipeline's run and the stage's run; make what is not there."""
    from mlflow.tracking import MlflowClient

    database = database_path(uri)
    location = None  # the server's choice
    if database is not None:
        location = (database.parent / "mlartifacts" / clean_name(experiment)).as_uri()
    with lock_database(database) if database is not None else nullcontext():
        client = MlflowClient(tracking_uri=uri)
        experiment_id = _experiment(client, experiment, location)
        # Others may run the same params on the same server at the same time.
        mine = {"pipeline.key": key, "clone": clone_id()}
        parent_id = _get_or_create_run(client, experiment_id, name, mine | {"stage": "pipeline"}, keep=True)
        link = mine | {"stage": stage, "mlflow.parentRunId": parent_id}
        run_id = _get_or_create_run(client, experiment_id, f"{stage} ({name})", link, keep=False)
    pipeline = _Session(client, parent_id, None, client.get_run(parent_id).data.params)
    session = _Session(client, run_id, pipeline, client.get_run(run_id).data.params)
    source = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    source |= {"mlflow.source.git.commit": tags["baseline"]} if "baseline" in tags else {}
    session.log_tags({**source, **tags})
    shared = ("experiment", "baseline", "dirty")
    pipeline.log_tags({name: tags[name] for name in shared if name in tags})
    pipeline.log_params(pipeline_params)
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


def log_pyfunc(client: MlflowClient, run_id: str, served: ServedModel) -> tuple[str, str]:
    """Store a model under a run and return its id and its location.

    ``mlflow.pyfunc.log_model`` does the same to the store of the process; this one uses the client's.
    """
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    def schema(columns: Sequence[str]) -> Schema:
        return Schema([ColSpec("string", column) for column in columns])

    run = client.get_run(run_id)
    model = client.create_logged_model(
        run.info.experiment_id, served.name, source_run_id=run_id, params=run.data.params
    )
    status = "FAILED"
    try:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "model"
            pyfunc.save_model(
                target,
                mlflow_model=Model(
                    artifact_path=model.artifact_location,
                    model_uuid=model.model_id,
                    run_id=run_id,
                    model_id=model.model_id,
                ),
                loader_module=served.loader_module,
                data_path=str(served.data),
                code_paths=[str(served.code)],
                signature=ModelSignature(schema(served.inputs), schema(served.outputs)),
                input_example=pd.DataFrame([dict(served.example)]),
                pip_requirements=list(served.requirements),
                model_config=dict(served.config),
            )
            client.log_model_artifacts(model.model_id, str(target))
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        status = "READY"
    finally:
        client.finalize_logged_model(model.model_id, status)
    return model.model_id, model.artifact_location


def bad_request(message: str) -> Exception:
    """Return the exception that a served model answers a wrong request with (HTTP 400)."""
    from mlflow.exceptions import MlflowException

    return MlflowException.invalid_parameter_value(message)
