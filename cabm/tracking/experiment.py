"""How MLflow's pages show an experiment: as model training, with a view of its pipelines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

VIEW = "pipelines"
"""Key of the view that shows the pipelines with their main numbers."""

# Tags that MLflow's pages read. Without a kind, they may show the experiment as one of language models.
_KIND, _DESCRIPTION = "mlflow.experimentKind", "mlflow.note.content"
_TRAINING = "custom_model_development"
_VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
# Pages of a browser that has not seen MLflow are those for language models, whatever the kind: only a link
# opens others. The first line is on all pages of an experiment.
_PAGE = "#/experiments/{id}/runs?workflowType=machine_learning&viewStateShareKey=" + VIEW
_TEXT = f"""[PSNR and FAB of all pipelines]({_PAGE}&compareRunsMode=TABLE), \
[as charts]({_PAGE}&compareRunsMode=CHART)

PSNR is in dB on Y, higher is better; FAB is the mean bit width, 32 for the float network. A run such as
`edsr x4 ...` is a whole pipeline; the runs of its stages are below it."""


def describe_experiment(client: MlflowClient, experiment_id: str) -> None:
    """Set kind and description of an experiment, unless a user has set others."""
    tags = client.get_experiment(experiment_id).tags
    kind = tags.get(_KIND, "")
    if not kind or kind.endswith("inferred") or kind == "no_inferred_type":
        client.set_experiment_tag(experiment_id, _KIND, _TRAINING)
    if _DESCRIPTION not in tags:
        text = _TEXT.format(id=experiment_id)
        client.set_experiment_tag(experiment_id, _DESCRIPTION, text)


def show_metrics(client: MlflowClient, experiment_id: str, names: Sequence[str]) -> None:
    """Let the view of an experiment show pipelines only, with these metrics.

    Args:
        client: client of the store.
        experiment_id: the experiment.
        names: columns of the list of runs. Of each pair NAME_fab and NAME_psnr, the charts have a plot.
    """
    section = {"uuid": f"{VIEW}-section", "name": "PSNR against FAB", "display": True}
    charts = [
        {
            "type": "SCATTER",
            "uuid": f"{VIEW}-{fab}",
            "metricSectionId": section["uuid"],
            "xaxis": {"key": fab, "type": "METRIC"},
            "yaxis": {"key": psnr, "type": "METRIC"},
            "runsCountToCompare": 100,
        }
        for fab in names
        if fab.endswith("_fab") and (psnr := fab.removesuffix("fab") + "psnr") in names
    ]
    view = {
        "searchFilter": "tags.stage = 'pipeline'",
        "selectedColumns": [f"metrics.`{name}`" for name in names],
        "compareRunCharts": charts,
        "compareRunSections": [section],
        "isAccordionReordered": True,  # the sections that MLflow makes of the other metrics come below
    }
    client.set_experiment_tag(experiment_id, _VIEW_TAG, json.dumps(view))
