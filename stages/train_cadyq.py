"""Step 3: learn a bit selector for every layer (CADyQ)."""

from __future__ import annotations

from cabm import steps
from cabm.stage import run_stage

if __name__ == "__main__":
    raise SystemExit(run_stage("cadyq", steps.cadyq))
