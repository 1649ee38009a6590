"""Step 3: learn a bit selector for every layer (CADyQ)."""

from __future__ import annotations

from cabm.pipeline.stage import run_stage
from cabm.pipeline.train import cadyq

if __name__ == "__main__":
    raise SystemExit(run_stage("cadyq", cadyq))
