"""Questions about the CPU, answered by what LLVM and the system say."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from cabm.machine import cpu
from cabm.project.runtime import RuntimeSettings


def test_units_are_named_fastest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"avxvnni": True, "avx512vnni": True, "amx-int8": False}
    monkeypatch.setattr(cpu, "compiler_features", lambda: features)
    assert cpu.integer_units() == ["avx512vnni", "avxvnni"]


def test_without_llvm_pytorch_tells_the_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    found = {"avx512_vnni": True, "avx512_bf16": True, "amx_int8": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert cpu.integer_units() == ["avx512vnni"]
    assert cpu.multiplies_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "isa", "expected"),
    [
        ("ONEDNN_MAX_CPU_ISA", "AVX2", False),
        ("ONEDNN_MAX_CPU_ISA", "avx512_core_vnni", False),
        ("DNNL_MAX_CPU_ISA", "AVX2_VNNI_2", False),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", True),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX", True),
        ("ONEDNN_MAX_CPU_ISA", "DEFAULT", True),
        ("ONEDNN_MAX_CPU_ISA", "", True),
    ],
)
def test_bfloat16_is_not_used_where_onednn_is_kept_from_its_units(monkeypatch, name, isa, expected) -> None:
    monkeypatch.setattr(cpu, "compiler_features", lambda: {"avx512bf16": True, "amx-bf16": True})
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv(name, isa)
    assert cpu.multiplies_bfloat16(torch.device("cpu")) is expected
    assert RuntimeSettings(device="cpu").autocast() is (torch.bfloat16 if expected else None)


def test_threads_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    assert [cpu.cpu_threads(0, processes) for processes in (1, 4, 8)] == [6, 1, 1]
    assert cpu.cpu_threads(3, processes=4) == 3


def test_threads_of_one_core_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5})
    monkeypatch.setattr(cpu, "_core", lambda number: str(number // 2))
    assert cpu.available_cores() == 3
