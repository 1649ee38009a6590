"""The stage `edge_to_bit` (step 4): observe the CADyQ model's bits by tile, and build the table."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from cabm.checkpoints.find import find_model
from cabm.checkpoints.model_directory import load_model
from cabm.data.patches import PatchSampler
from cabm.evaluation.observe import observe
from cabm.evaluation.sensitivity import layer_noise
from cabm.files import write_json
from cabm.models import Backbone
from cabm.pipeline.stage import Stage
from cabm.tables.bypass import choose_bypass
from cabm.tables.cost import fab
from cabm.tables.table import build_table
from cabm.upscaling.torch_runners import ModelRunner

_NOISE_PATCH, _NOISE_BATCH, _NOISE_BATCHES = 24, 16, 4


def edge_to_bit(stage: Stage) -> None:
    """Write the observations and the edge-to-bit table."""
    settings = stage.params.edge_to_bit
    source = find_model(settings.cadyq_from) if settings.cadyq_from else stage.models / "cadyq"
    loaded = load_model(source)
    started = time.perf_counter()
    observations = observe(
        ModelRunner(loaded.model, collapse_tail=True),
        stage.store("validation"),
        tile=settings.tile,
        stride=settings.stride,
        part=settings.bypass.part,
        source_sha256=loaded.config.weights_sha256,
    )
    if settings.strategy == "constant":
        observations = replace(observations, noise=_layer_noise(stage, loaded.model))
    seconds = time.perf_counter() - started
    observations.save(stage.tables / "observations.npz")
    table = build_table(observations, strategy=settings.strategy, fab_cap=settings.fab_cap)
    bypass = choose_bypass(
        observations,
        max_loss_db=settings.bypass.max_loss_db,
        max_tile_loss_db=settings.bypass.max_tile_loss_db,
    )
    table = replace(table, bypass=bypass, contrast_limit=settings.contrast_limit)
    table.save(stage.tables / "edge_to_bit.json")

    metrics = {
        "tiles": len(observations.scores),
        "rows": len(table.rows),
        "cadyq_fab": fab(observations.bits),
        "table_fab": fab(table.lookup(observations.scores)),
        "bypassed": 0.0 if bypass is None else bypass.share,
        "bypass_loss_db": 0.0 if bypass is None else bypass.loss_db,
    }
    timing = {
        "seconds": round(seconds, 2),
        "tiles_per_second": round(len(observations.scores) / seconds, 2),
    }
    write_json(stage.metrics / "edge_to_bit.json", metrics)
    write_json(stage.timing / "edge_to_bit.json", timing)
    stage.tracker.metrics(metrics | timing, 0)
    stage.tracker.dict("edge_to_bit", table.describe())
    from cabm.reporting.bits import table_picture

    stage.tracker.figure("edge_to_bit", table_picture(table))


def _layer_noise(stage: Stage, model: Backbone) -> np.ndarray:
    """Measure the noise of layers on training patches."""
    settings = stage.settings()
    side = min(_NOISE_PATCH, settings.tile)
    sampler = PatchSampler(stage.store("train"), batch_size=_NOISE_BATCH, lr_patch=side, seed=0)
    return layer_noise(model, sampler, _NOISE_BATCHES, stage.params.runtime.autocast())
