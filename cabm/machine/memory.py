"""How much memory the process takes, and how it keeps it."""

from __future__ import annotations

import ctypes
import platform
import resource
import sys
from pathlib import Path

# parameters of mallopt(3), from glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
NEVER = -1
LARGEST_THRESHOLD = 32 << 20  # glibc refuses more


def keep_freed_memory() -> bool:
    """Let malloc keep blocks that are freed instead of giving them back to the system.

    A training step frees and asks again for the same activations. By default glibc maps many of them anew,
    and the first touch of every page is a fault: some ten thousand a step, an eighth of a quantized
    step's time. The price is that the process holds its peak until it ends.

    Returns:
        Whether it will; not where the C library is another than glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    kept = library.mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD)
    return bool(kept and library.mallopt(M_TRIM_THRESHOLD, NEVER))


def peak_memory() -> int:
    """Return the most memory in bytes that the process has had resident.

    On Linux from /proc: what getrusage(2) tells is not the process's own, it starts at the peak of the
    process that started it.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        kibibytes = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kibibytes
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
