"""Run the engine on emulated CPUs; needs the package qemu-user of Debian (`pytest -m slow`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from .helpers import BACKBONES, calibrated, photograph, row, simulated

EMULATED = """
import sys, torch
from cabm.engine import compile_model, supports
from cabm.engine.fused import compiled

for model, tiles, bits, wanted, tolerance in torch.load(sys.argv[1], weights_only=False):
    assert supports(model) is None
    engine = compile_model(model, float_dtype=torch.float32)
    found = engine.run(tiles.numpy(), bits.numpy(), dtype="float32")
    difference = float(abs(found - wanted.numpy()).mean())
    print(compiled().form.name, difference <= tolerance or difference)
"""

ARM = os.environ.get("CABM_TEST_ARM", "")

needs_arm = pytest.mark.skipif(
    not ARM or shutil.which("qemu-aarch64") is None,
    reason="needs qemu-user, and a folder of arm_environment.sh in CABM_TEST_ARM",
)


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command of an ARM Python with the package; only these tests share its compiled code."""
    folder, cache = Path(ARM).resolve(), tmp_path_factory.mktemp("cache")
    paths = f"PYTHONPATH={Path(__file__).parents[2]}:{folder / 'packages'}"
    variables = ["-E", paths, "-E", f"XDG_CACHE_HOME={cache}", "-U", "NUMBA_CACHE_DIR"]
    python = folder / f"usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    return ["qemu-aarch64", "-cpu", "neoverse-n1", *variables, "-L", str(folder), str(python)]


def run_backbones(python: list[str], folder: Path, tolerance: float) -> list[str]:
    """Return what EMULATED prints for all backbones, or what it says of its failure."""
    cases = []
    for backbone in BACKBONES:
        model = calibrated(backbone)
        tiles, bits = photograph(9, 11, seed=1), row(model, "mixed")
        cases.append((model, tiles, bits, simulated(model, tiles, bits), tolerance))
    torch.save(cases, folder / "cases.pt")
    run = [*python, "-c", EMULATED, str(folder / "cases.pt")]
    found = subprocess.run(run, capture_output=True, text=True, timeout=1800)
    return found.stdout.splitlines() if found.returncode == 0 else [found.stderr]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-user")
def test_a_cpu_with_avx2_alone_runs_all_backbones(tmp_path: Path) -> None:
    """Haswell has AVX2, and neither VNNI nor AVX-512."""
    python = ["qemu-x86_64", "-cpu", "Haswell", sys.executable]
    assert run_backbones(python, tmp_path, 0.05) == ["winograd 256 True"] * len(BACKBONES)


@pytest.mark.slow
@needs_arm
def test_arm_runs_all_backbones(arm: list[str], tmp_path: Path) -> None:
    assert run_backbones(arm, tmp_path, 0.001) == ["direct 128 True"] * len(BACKBONES)


@pytest.mark.slow
@needs_arm
def test_arm_upscales_like_the_simulation_here(arm: list[str], tmp_path: Path) -> None:
    """Two tiles by the shipped model, in integers on ARM and in floats on this CPU."""
    source = tmp_path / "small.png"
    Image.fromarray(photograph(24, 100)[0].permute(1, 2, 0).numpy()).save(source)
    results = []
    for python, engine in (arm, "int8"), ([sys.executable], "float"):
        result = tmp_path / f"{engine}.png"
        options = ["-o", str(result), "--engine", engine]
        subprocess.run([*python, "-m", "cabm", "upscale", str(source), *options], check=True, timeout=1800)
        results.append(np.asarray(Image.open(result)).astype(int))
    difference = abs(results[0] - results[1])
    assert difference.shape == (96, 400, 3) and difference.max() <= 1 and difference.mean() < 0.001
