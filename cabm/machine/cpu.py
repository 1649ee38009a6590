"""Every question about the CPU: its name, its units, how many threads to use."""

from __future__ import annotations

import os
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


def cpu_features() -> dict[str, object]:
    """What PyTorch knows of the CPU; nothing where this torch does not tell."""
    try:
        return dict(torch.cpu.get_capabilities())
    except (AttributeError, RuntimeError):
        return {}


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has units for bfloat16 products, without which autocast is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    features = cpu_features()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def cpu_threads(threads: int, processes: int = 1) -> int:
    """Return the number of threads that one of ``processes`` on this machine should compute with."""
    return threads or max(1, len(os.sched_getaffinity(0)) // processes)
