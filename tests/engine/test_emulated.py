"""Run the engine on an emulated CPU; needs the package qemu-user of Debian (`pytest -m slow`)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cabm.engine import compile_model
from cabm.engine.programs.edsr import kernel_for

from .helpers import calibrated

EMULATED = """
import sys, torch
from cabm.engine import compile_model, supports
from cabm.engine.programs.edsr import kernel_for

model, bits, x, wanted = torch.load(sys.argv[1], weights_only=False)
assert supports(model) is None
with torch.inference_mode():
    found = compile_model(model)._program.plan(bits)(x)
print(kernel_for(model).form.name, torch.equal(found, wanted))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-user")
def test_a_cpu_with_avx2_alone_runs_the_same_blocks(tmp_path: Path) -> None:
    """Haswell has AVX2, and neither VNNI nor AVX-512."""
    model = calibrated("edsr", options={"num_features": 64, "num_blocks": 2})
    bits = (8, 4, 6) * 2
    if kernel_for(model) is None:
        pytest.skip("this CPU runs no form, so there is nothing to compare with")
    x = torch.randn(1, 64, 9, 11, generator=torch.Generator().manual_seed(1)).mul_(20)
    with torch.inference_mode():
        wanted = compile_model(model)._program.plan(bits)(x)
    torch.save((model, bits, x, wanted), tmp_path / "blocks.pt")
    run = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, "-c", EMULATED, str(tmp_path / "blocks.pt")]
    found = subprocess.run(run, capture_output=True, text=True, timeout=1800)
    assert found.stdout.split() == ["winograd", "256", "True"], found.stderr
