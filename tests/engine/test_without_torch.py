"""Compiled layers and float convolutions run in a process that does not import PyTorch."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT_TORCH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from cabm.engine import byte_rows, float_rows, float_winograd, fused, pixel_conv, tap_sums
from cabm.machine import cpu
fused.compiled(), fused.compiled(wide=True), byte_rows.compiled(), float_rows.compiled()
for chosen, module in (float_winograd, float_winograd), (pixel_conv, pixel_conv), (pixel_conv, tap_sums):
    if chosen.widest() is not None:
        module.compiled(chosen.widest())
cpu.integer_units(), cpu.cpu_multiplies_bfloat16()
print("torch" in sys.modules)
"""


@pytest.mark.parametrize(
    "names",
    [
        (
            "cabm.engine",
            "cabm.engine.chains",
            "cabm.engine.fused",
            "cabm.engine.forms",
            "cabm.engine.trial",
        ),
        ("cabm.engine.float_rows", "cabm.engine.byte_rows", "cabm.machine.cpu", "cabm.quant.levels"),
        ("cabm.engine.float_tail", "cabm.engine.float_winograd", "cabm.engine.tap_sums"),
    ],
    ids=["layers", "rows", "tails"],
)
def test_compiled_code_is_loaded_and_tried_without_pytorch(names: tuple[str, ...]) -> None:
    run = [sys.executable, "-c", WITHOUT_TORCH, *names]
    found = subprocess.run(run, capture_output=True, text=True, timeout=300, check=True)
    assert found.stdout == "False\n"
