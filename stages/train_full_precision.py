"""Step 1: train the backbone in full precision."""

from __future__ import annotations

from cabm import steps
from cabm.stage import run_stage

if __name__ == "__main__":
    raise SystemExit(run_stage("full_precision", steps.full_precision))
