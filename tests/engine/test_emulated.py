"""Run the engine on an emulated CPU; needs the package qemu-user of Debian (`pytest -m slow`)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .helpers import BACKBONES, calibrated, photograph, row, simulated

EMULATED = """
import sys, torch
from cabm.engine import compile_model, supports
from cabm.engine.fused import compiled

for model, tiles, bits, wanted, tolerance in torch.load(sys.argv[1], weights_only=False):
    assert supports(model) is None
    found = compile_model(model, float_dtype=torch.float32).run(tiles, bits, dtype=torch.float32)
    difference = float((found - wanted).abs().mean())
    print(compiled().form.name, difference <= tolerance or difference)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-user")
def test_a_cpu_with_avx2_alone_runs_all_backbones(tmp_path: Path) -> None:
    """Haswell has AVX2, and neither VNNI nor AVX-512."""
    cases = []
    for backbone in BACKBONES:
        model = calibrated(backbone)
        tiles, bits = photograph(9, 11, seed=1), row(model, "mixed")
        cases.append((model, tiles, bits, simulated(model, tiles, bits), 0.05))
    torch.save(cases, tmp_path / "cases.pt")
    run = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, "-c", EMULATED, str(tmp_path / "cases.pt")]
    found = subprocess.run(run, capture_output=True, text=True, timeout=1800)
    assert found.stdout.split() == ["winograd", "256", "True"] * len(BACKBONES), found.stderr
