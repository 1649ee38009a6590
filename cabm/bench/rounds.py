"""Time contenders one after another in rounds, and compare them within rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int, *, pause: float = 0
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Run every contender once to warm up, then time each in every round.

    Args:
        runs: contenders by name.
        rounds: timings of each, at least 1.
        pause: seconds to wait for other contenders' threads before each timing. Each then runs once more to
            warm up.

    Returns:
        The results of the first runs, and the seconds of the rounds, by name.
    """
    results = {name: run() for name, run in runs.items()}  # first calls choose kernels and allocate
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if pause:
                time.sleep(pause)
                run()
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return results, seconds


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median over rounds of above / below."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
