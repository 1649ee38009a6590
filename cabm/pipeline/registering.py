"""Registration of the finished model."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cabm.pipeline.stage import Stage
from cabm.tracking.registry import Quality, log_and_register


def register(stage: Stage, measured: Mapping[str, float]) -> None:
    """Register the stage's model, which competes with the champion of its backbone and scale.

    Args:
        stage: the stage that trained the model.
        measured: ``psnr`` and ``fab`` on the validation images.
    """
    params, settings = stage.params, stage.params.evaluate
    protocol = f"tiles of {settings.tile}, {settings.stride} apart"
    registered = log_and_register(
        stage.tracker,
        stage.models / stage.name,
        name=f"cabm-{params.model.name}-x{params.model.scale}",
        quality=Quality(
            psnr=measured["psnr"],
            fab=measured.get("fab", math.nan),  # missing if all tiles are bypassed
            measured_on=f"validation images {stage.store('validation').sha256[:16]}, {protocol}",
        ),
        settings=params.serving,
    )
    if registered is not None:
        stage.tracker.tags(
            {"registered": f"{registered.name} version {registered.version}", "champion": registered.reason}
        )
