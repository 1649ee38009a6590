"""Memory of the process: peak use, and whether freed memory is kept."""

from __future__ import annotations

import ctypes
import platform
import resource
import sys
from pathlib import Path

# parameters of mallopt(3) in glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
NEVER = -1
LARGEST_THRESHOLD = 32 << 20  # the largest that glibc accepts


def keep_freed_memory() -> bool:
    """Let malloc keep freed blocks instead of returning them to the system.

    A training step, or a tile, frees and allocates the same activations again. By default glibc maps many
    of them anew, and the first access to each page is a page fault: about ten thousand per training step,
    an eighth of the time of a quantized one. Threads that map and unmap memory also wait for each other: on
    two of them a tile took 0.85 of the time of one, and takes 0.55 with memory kept. In exchange, the
    process keeps its peak memory until it ends, but for blocks of more than 32 MB.

    Returns:
        Whether malloc keeps them; False for C libraries other than glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    kept = library.mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD)
    return bool(kept and library.mallopt(M_TRIM_THRESHOLD, NEVER))


def peak_memory() -> int:
    """Return the peak resident memory of the process in bytes.

    On Linux it is read from /proc: the peak of getrusage(2) starts at that of the parent process.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        kibibytes = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kibibytes
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
