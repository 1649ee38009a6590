"""Step 5: fine-tune with bits looked up from the edge score (CABM)."""

from __future__ import annotations

from cabm.pipeline.stage import run_stage
from cabm.pipeline.train import cabm

if __name__ == "__main__":
    raise SystemExit(run_stage("cabm", cabm))
