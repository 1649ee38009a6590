"""Step 1: train the backbone in full precision."""

from __future__ import annotations

from cabm.pipeline.stage import run_stage
from cabm.pipeline.train import full_precision

if __name__ == "__main__":
    raise SystemExit(run_stage("full_precision", full_precision))
