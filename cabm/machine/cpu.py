"""What the CPU is and can do: its name, its arithmetic units, how many threads to use."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from cabm import __version__

if TYPE_CHECKING:
    import torch

_ISAS_WITHOUT_BFLOAT16 = frozenset(
    ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni")
)


_PYTORCHS_NAMES = {
    "amx-bf16": "amx_bf16",
    "amx-int8": "amx_int8",
    "avx512bf16": "avx512_bf16",
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx_vnni",
}


def environment(threads: int) -> dict[str, str]:
    """Return processor, number of threads and versions in words, to record beside measurements."""
    import torch

    return {
        "processor": f"{processor_name()}, {threads} thread{'s' if threads != 1 else ''}",
        "cabm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(aliased=True, terse=True),
    }


def processor_name() -> str:
    """Return the name of the processor, or its architecture if the system does not tell the name."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return next((name for name in names if name), platform.processor() or platform.machine())


def architecture() -> str:
    """Return the CPU's architecture as the system names it, such as ``x86_64`` or ``aarch64``."""
    return platform.machine().lower()


def integer_units() -> list[str]:
    """Return the CPU's units for products of 8-bit numbers, fastest first; empty if it has none.

    Names are LLVM's.
    """
    features = known_features()
    return [name for name in ("amx-int8", "avx512vnni", "avxvnni") if features.get(name)]


def compiler_features() -> dict[str, bool]:
    """Return the CPU's instruction sets by LLVM's names.

    Compiled loops ask LLVM, because it aborts the process if its target lacks an instruction.

    Raises:
        ImportError: llvmlite is missing.
        OSError: its library is broken.
    """
    from llvmlite import binding

    features = dict(binding.get_host_cpu_features())
    if architecture() in ("aarch64", "arm64") and binding.get_host_cpu_name() != "generic":
        # LLVM does not list what it knows from the name of an ARM CPU
        features["dotprod"] = features.get("dotprod", False) or _arm_multiplies_bytes()
    return features


def known_features() -> dict[str, bool]:
    """Return `compiler_features` or, if LLVM is missing or broken, the few of them that PyTorch knows."""
    try:
        return compiler_features()
    except (ImportError, OSError):
        import torch

        found = torch.cpu.get_capabilities()
        return {name: bool(found.get(known)) for name, known in _PYTORCHS_NAMES.items()}


def _arm_multiplies_bytes() -> bool:
    """Return whether an ARM CPU has NEON's dot products of bytes; all of Apple's have."""
    if platform.system() == "Darwin":
        return True
    return any(line.startswith("Features") and "asimddp" in line.split() for line in _cpuinfo())


def _cpuinfo() -> list[str]:
    """Return what Linux tells of the CPU, as lines; none on other systems."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 in hardware; if not, autocast is slower than float32."""
    if device.type == "cuda":
        import torch

        return torch.cuda.is_bf16_supported()
    return cpu_multiplies_bfloat16()


def cpu_multiplies_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware.

    It does not where ``ONEDNN_MAX_CPU_ISA`` keeps oneDNN, which multiplies for PyTorch, from its units:
    with AVX2, a convolution in bfloat16 then takes five to fifteen times as long as one in float32.
    """
    features = known_features()
    has_units = bool(features.get("avx512bf16") or features.get("amx-bf16"))
    return has_units and _most_of_onednn() not in _ISAS_WITHOUT_BFLOAT16


def _most_of_onednn() -> str:
    """Return the instruction set that the environment restricts oneDNN to; empty if it does not."""
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # oneDNN reads both, in this order
    return next((value for name in names if (value := os.environ.get(name, "").lower())), "")


def available_cores() -> int:
    """Return how many cores this process may use; threads of one core share its units and count as one."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len({_core(number) for number in os.sched_getaffinity(0)})


def _core(number: int) -> str:
    """Return what the threads of a core have in common; on systems that do not tell, each has its own."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(number)


def cpu_threads(threads: int, processes: int = 1) -> int:
    """Return how many threads each of several processes on this machine computes with.

    Args:
        threads: wanted number; 0: the available CPUs divided by ``processes``, at least 1.
        processes: how many processes share the machine.
    """
    return threads or max(1, len(os.sched_getaffinity(0)) // processes)
