"""Measure every step on every test set, draw the figures, write the report."""

from __future__ import annotations

from cabm.pipeline.evaluate import evaluate
from cabm.pipeline.stage import run_stage

if __name__ == "__main__":
    raise SystemExit(run_stage("evaluate", evaluate))
