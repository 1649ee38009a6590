"""Whether this machine may have a GPU, without asking PyTorch."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvmap", "/dev/kfd", "/dev/dxg")
"""Files that Linux shows where a driver of a GPU runs: NVIDIA's, its boards', AMD's, and Windows' for its
Linux."""


def may_have_gpu() -> bool:
    """Return whether PyTorch may find a GPU; it takes half a second to ask it."""
    system = platform.system()
    if system == "Darwin" or (system == "Linux" and not any(Path(name).exists() for name in DRIVERS)):
        return False
    return not version("torch").endswith("+cpu")  # asked last: it looks through all packages
