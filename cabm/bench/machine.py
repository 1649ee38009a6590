"""The machine that timings were taken on, and the peak speed of its integer units."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch

from cabm.engine import onednn
from cabm.engine.grid import Grid, Storage
from cabm.engine.packing import Scaling
from cabm.machine.cpu import integer_units, processor_name
from cabm.machine.threads import limited_threads


def describe_machine(threads: int) -> dict[str, Any]:
    """Return processor, threads, load and PyTorch version as JSON values."""
    units = integer_units()
    return {
        "cpu": f"{processor_name()} ({', '.join(units) or 'no integer units'})",
        "threads": threads,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"),
        "torch": torch.__version__,
    }


def int8_peak(repeats: int = 10) -> float:
    """Return oneDNN's integer operations per second on one thread, the best of three convolutions.

    Which one is fastest depends on the processor: large ones stream weights, small ones stay in caches.
    """
    with limited_threads(1):
        return max(_rate(*shape, repeats) for shape in ((1024, 1, 64), (256, 3, 48), (64, 3, 96)))


def _rate(channels: int, kernel: int, side: int, repeats: int) -> float:
    conv = onednn.IntegerConv(np.ones((channels, channels, kernel, kernel)), padding=(kernel // 2,) * 2)
    x = torch.ones(1, channels, side, side, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    grid, scaling = Grid(127.0, 8, Storage.POSITIVE), Scaling(np.ones(1, np.float32), None)
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        conv.to_codes(x, grid, scaling, grid)
        best = min(best, time.perf_counter() - start)
    return 2 * (channels * kernel * side) ** 2 / best
