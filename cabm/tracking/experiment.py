"""How MLflow's pages show an experiment: as model training, with a view of its pipelines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

VIEW = "pipelines"
"""Key of the view that shows the pipelines with their main numbers."""

# Tags that MLflow's pages read. Without a kind, they may show the experiment as one of language models.
_KIND, _DESCRIPTION = "mlflow.experimentKind", "mlflow.note.content"
_TRAINING = "custom_model_development"
_VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
_TEXT = """A run such as `edsr x4 ...` is a whole pipeline. The runs of its stages are below it.

[PSNR and FAB of the pipelines](#/experiments/{id}/runs?viewStateShareKey={view}): PSNR in dB on Y, higher
is better; FAB is the mean bit width, 32 for the float network."""


def describe_experiment(client: MlflowClient, experiment_id: str) -> None:
    """Set kind and description of an experiment, unless a user has set others."""
    tags = client.get_experiment(experiment_id).tags
    kind = tags.get(_KIND, "")
    if not kind or kind.endswith("inferred") or kind == "no_inferred_type":
        client.set_experiment_tag(experiment_id, _KIND, _TRAINING)
    if _DESCRIPTION not in tags:
        text = _TEXT.format(id=experiment_id, view=VIEW)
        client.set_experiment_tag(experiment_id, _DESCRIPTION, text)


def show_metrics(client: MlflowClient, experiment_id: str, names: Iterable[str]) -> None:
    """Let the view of an experiment show pipelines only, with these metrics as columns."""
    view = {
        "searchFilter": "tags.stage = 'pipeline'",
        "selectedColumns": [f"metrics.`{name}`" for name in names],
    }
    client.set_experiment_tag(experiment_id, _VIEW_TAG, json.dumps(view))
