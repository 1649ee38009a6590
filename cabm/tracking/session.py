"""An open MLflow run, and how it is opened."""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cabm.tracking.experiment import describe_experiment
from cabm.tracking.provenance import clone_id
from cabm.tracking.relocation import ARTIFACTS, relocate
from cabm.tracking.store import database_path, lock_database

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MAX_PARAM_CHARS = 6000  # MLflow's limits
MAX_TAG_CHARS = 8000
MAX_PARAMS_PER_REQUEST = 100

Metric = tuple[str, float, int, int]
"""Name, value, milliseconds since 1970, step."""


@dataclass
class Session:
    """An open run in a store. Every method may take long and may raise.

    Attributes:
        client: client of the store.
        experiment_id: the experiment that the run belongs to.
        run_id: the run.
        pipeline: the pipeline's run, if this is the run of a stage.
        known_params: params that the run has.
    """

    client: MlflowClient
    experiment_id: str
    run_id: str
    pipeline: Session | None = None
    known_params: dict[str, str] = field(default_factory=dict)

    def log_metrics(self, metrics: Sequence[Metric]) -> None:
        """Record points of curves."""
        from mlflow import entities

        self.client.log_batch(self.run_id, metrics=[entities.Metric(*metric) for metric in metrics])

    def log_params(self, params: Mapping[str, str]) -> None:
        """Record params; a param keeps its first value."""
        from mlflow.entities import Param

        cut = {clean_name(name): value[:MAX_PARAM_CHARS] for name, value in params.items()}
        known = self.known_params
        new = [Param(name, value) for name, value in cut.items() if name not in known]
        for start in range(0, len(new), MAX_PARAMS_PER_REQUEST):
            chunk = new[start : start + MAX_PARAMS_PER_REQUEST]
            self.client.log_batch(self.run_id, params=chunk)
            known |= {param.key: param.value for param in chunk}
        # MLflow refuses to change a param, so a resumed run with changed params gets a tag
        changed = [
            f"{name}: {known[name]} -> {value}" for name, value in cut.items() if known[name] != value
        ]
        if changed:
            self.log_tags({"params.changed": "\n".join(changed)})

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        items = [RunTag(clean_name(name), str(value)[:MAX_TAG_CHARS]) for name, value in tags.items()]
        self.client.log_batch(self.run_id, tags=items)

    def log_artifact(self, path: str, content: bytes) -> None:
        """Store a file under the run."""
        target = PurePosixPath(path)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / target.name
            file.write_bytes(content)
            parent = str(target.parent)
            self.client.log_artifact(self.run_id, str(file), None if parent == "." else parent)

    def log_image(self, name: str, content: bytes) -> None:
        """Store a PNG file as an image that MLflow's pages show beside those of other runs."""
        from PIL import Image

        with Image.open(io.BytesIO(content)) as image:
            self.client.log_image(self.run_id, image.convert("RGB"), key=name, step=0, synchronous=True)

    def mark_table(self, path: str) -> None:
        """Mark the artifact at ``path`` as a table."""
        # MLflow's pages show what this tag lists. MlflowClient.log_table would append the rows again
        # when a stage is repeated.
        tags = self.client.get_run(self.run_id).data.tags
        tables = json.loads(tags.get("mlflow.loggedArtifacts", "[]"))
        entry = {"path": path, "type": "table"}
        if entry not in tables:
            self.log_tags({"mlflow.loggedArtifacts": json.dumps([*tables, entry])})

    def end(self, status: str) -> None:
        """End the run, and the pipeline's run, with a status."""
        self.client.set_terminated(self.run_id, status)
        if self.pipeline is not None:
            self.pipeline.end(status)


def connect(
    uri: str,
    experiment: str,
    name: str,
    key: str,
    stage: str,
    tags: Mapping[str, Any],
    pipeline_params: Mapping[str, str],
) -> Session:
    """Open the experiment, the pipeline's run and the stage's run, or create them."""
    from mlflow.tracking import MlflowClient

    database = database_path(uri)
    location = None  # the server chooses
    if database is not None:
        location = (database.parent / ARTIFACTS / clean_name(experiment)).as_uri()
    with lock_database(database) if database is not None else nullcontext():
        if database is not None:
            relocate(database)
        client = MlflowClient(tracking_uri=uri)
        experiment_id = _experiment(client, experiment, location)
        describe_experiment(client, experiment_id)
        # other clones may run the same params on the same server at the same time
        mine = {"pipeline.key": key, "clone": clone_id()}
        parent_id = _get_or_create_run(client, experiment_id, name, mine | {"stage": "pipeline"}, keep=True)
        link = mine | {"stage": stage, "mlflow.parentRunId": parent_id}
        run_id = _get_or_create_run(client, experiment_id, f"{stage} ({name})", link, keep=False)
    pipeline = Session(client, experiment_id, parent_id, None, client.get_run(parent_id).data.params)
    session = Session(client, experiment_id, run_id, pipeline, client.get_run(run_id).data.params)
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
            found = client.get_experiment_by_name(name)  # another process created it
    if found is None or found.lifecycle_stage != "active":
        message = f"experiment {name!r} was deleted; restore it, or set tracking.experiment to another"
        raise MlflowException.invalid_parameter_value(message)
    return found.experiment_id


def _get_or_create_run(
    client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str], *, keep: bool
) -> str:
    """Reopen the newest run with these tags (a finished one only if ``keep``), or create one."""
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs([experiment_id], wanted, max_results=1)
    if found and (keep or found[0].info.status != "FINISHED"):
        client.update_run(found[0].info.run_id, status="RUNNING")
        return found[0].info.run_id
    return client.create_run(experiment_id, tags=dict(tags), run_name=name).info.run_id


def clean_name(name: str) -> str:
    """Return a name with underscores in place of characters that MLflow refuses."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]
