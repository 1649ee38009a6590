"""On what a stage computed: beside timings, which mean nothing without it."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from cabm import __version__


def environment(threads: int) -> dict[str, str]:
    """Return processor, threads (of torch) and versions, in words."""
    return {
        "processor": f"{processor_name()}, {threads} thread{'s' if threads != 1 else ''}",
        "cabm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(aliased=True, terse=True),
    }


def processor_name() -> str:
    """Return the processor's name as its maker writes it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next((name for name in names if name), platform.processor() or platform.machine())
