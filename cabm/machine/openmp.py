"""How PyTorch's threads wait for each other; imports no PyTorch, which would have decided it already."""

from __future__ import annotations

import os

SPINS = "3000"
"""Some ten microseconds: as fast as the default of GNU's OpenMP on idle cores, no burden on busy ones."""


def spin_briefly() -> None:
    """Let PyTorch's threads sleep soon between operations; call before PyTorch is first imported.

    A thread that spins on a core which others need uses up its share of it. Each small operation on all
    threads then waits for the next share. Settings of the environment stay.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
