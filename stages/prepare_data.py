"""Pack photographs into training, validation and test stores."""

from __future__ import annotations

from cabm.pipeline.prepare import prepare_data
from cabm.pipeline.stage import run_stage

if __name__ == "__main__":
    raise SystemExit(run_stage("prepare", prepare_data))
