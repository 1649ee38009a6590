"""Step 4: observe the CADyQ model's bits on validation tiles and build the edge-to-bit table."""

from __future__ import annotations

import time

from cabm.checkpoint import load_model
from cabm.files import write_json
from cabm.inference import ModelRunner
from cabm.metrics import fab, skipped_share
from cabm.observe import apply_bypass, observe
from cabm.pretrained import model_directory
from cabm.report import table_picture
from cabm.stage import Stage, run_stage
from cabm.table import build_table


def build(stage: Stage) -> None:
    """Write the observations and the table."""
    settings = stage.params.edge_to_bit
    source = model_directory(settings.cadyq_from) if settings.cadyq_from else stage.models / "cadyq"
    loaded = load_model(source)
    started = time.perf_counter()
    observations = observe(
        ModelRunner(loaded.model, collapse_tail=True),
        stage.store("validation"),
        patch=settings.patch,
        step=settings.step,
        part=settings.bypass.part,
        source_sha256=loaded.config.weights_sha256,
    )
    seconds = time.perf_counter() - started
    observations.save(stage.tables / "observations.npz")
    table = build_table(
        observations.scores,
        observations.bits,
        **observations.origin,
        strategy=settings.strategy,
        fab_cap=settings.fab_cap,
    )
    bypass = settings.bypass
    table = apply_bypass(
        table, observations, max_loss_db=bypass.max_loss_db, max_tile_loss_db=bypass.max_tile_loss_db
    )
    table.save(stage.tables / "edge_to_bit.json")

    computed = table.with_bypass(0)
    metrics = {
        "tiles": len(observations.scores),
        "rows": len(table.rows),
        "cadyq_fab": fab(observations.bits),
        "table_fab": fab(computed.lookup(observations.scores)),
        "table_skipped": skipped_share(computed.lookup(observations.scores)),
        "bypassed": 0.0 if table.bypass is None else table.bypass["share"],
        "bypass_loss_db": 0.0 if table.bypass is None else table.bypass["loss_db"],
    }
    timing = {
        "seconds": round(seconds, 2),
        "tiles_per_second": round(len(observations.scores) / seconds, 2),
    }
    write_json(stage.metrics / "edge_to_bit.json", metrics)
    write_json(stage.timing / "edge_to_bit.json", timing)
    stage.tracker.metrics(metrics | timing, 0)
    stage.tracker.dict("edge_to_bit", table.describe())
    stage.tracker.figure("edge_to_bit", table_picture(table))


if __name__ == "__main__":
    raise SystemExit(run_stage("edge_to_bit", build))
