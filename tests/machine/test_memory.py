"""Memory of processes that are started for the test."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from cabm.machine.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def step():
    blocks = [b"x" * (16 << 20) for _ in range(4)]

step()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    run = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other ways")
def test_freed_memory_is_used_without_new_faults() -> None:
    kept, returned = faults("keep"), faults("give back")
    assert kept < 100
    assert returned > 10_000, "the default that this is about"


def test_peak_memory_does_not_include_the_parent() -> None:
    inner = "from cabm.machine.memory import peak_memory; print(peak_memory())"
    outer = f"""
import subprocess, sys
block = b"x" * (300 << 20)
sys.stdout.write(subprocess.run([sys.executable, "-c", {inner!r}], capture_output=True, text=True).stdout)
from cabm.machine.memory import peak_memory
print(peak_memory())
"""
    run = subprocess.run([sys.executable, "-c", outer], capture_output=True, text=True, check=True)
    child, parent = map(int, run.stdout.split())
    assert child < 150 << 20
    assert parent > 300 << 20
