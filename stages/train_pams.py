"""Step 2: fine-tune at 8 bits with learned clip values (PAMS)."""

from __future__ import annotations

from cabm.pipeline.stage import run_stage
from cabm.pipeline.train import pams

if __name__ == "__main__":
    raise SystemExit(run_stage("pams", pams))
