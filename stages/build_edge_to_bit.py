"""Step 4: build the table from edge score to bits."""

from __future__ import annotations

from cabm.pipeline.edge_to_bit import edge_to_bit
from cabm.pipeline.stage import run_stage

if __name__ == "__main__":
    raise SystemExit(run_stage("edge_to_bit", edge_to_bit))
