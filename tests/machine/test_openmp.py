from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cabm.machine.openmp import SPINS, spin_briefly

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

AT_THE_IMPORT = """
import os, sys
from cabm.cli import main, upscale

def stop():
    print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
    sys.exit()

upscale.torch_in_part = stop
sys.argv = ["cabm", "upscale", "photo.png"]
main.main()
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": SPINS}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_settings_of_the_environment_stay(
    given: dict, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    spin_briefly()
    assert os.environ == expected


def test_upscale_decides_before_pytorch_is_imported() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    run = [sys.executable, "-c", AT_THE_IMPORT]
    found = subprocess.run(run, capture_output=True, text=True, env=environment, check=True)
    assert found.stdout == f"{SPINS} False\n"
