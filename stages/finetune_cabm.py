"""Step 5: fine-tune with bits looked up from the edge score (CABM)."""

from __future__ import annotations

from cabm import steps
from cabm.stage import run_stage

if __name__ == "__main__":
    raise SystemExit(run_stage("cabm", steps.cabm))
