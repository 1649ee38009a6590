"""Step 2: fine-tune at 8 bits with learned clip values (PAMS)."""

from __future__ import annotations

from cabm import steps
from cabm.stage import run_stage

if __name__ == "__main__":
    raise SystemExit(run_stage("pams", steps.pams))
