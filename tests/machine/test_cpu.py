"""Questions about the CPU, answered by what PyTorch and the system say."""

from __future__ import annotations

import os

import pytest
import torch

from cabm.machine import cpu


def test_units_are_named_fastest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"avx_vnni": True, "avx512_vnni": True, "amx_int8": False, "cpu_name": "Abacus"}
    monkeypatch.setattr(cpu, "cpu_features", lambda: features)
    assert cpu.integer_units() == ["avx512_vnni", "avx_vnni"]


def test_a_torch_that_tells_nothing_means_no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert cpu.cpu_features() == {}
    assert cpu.integer_units() == []
    assert not cpu.multiplies_bfloat16(torch.device("cpu"))


def test_threads_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    assert [cpu.cpu_threads(0, processes) for processes in (1, 4, 8)] == [6, 1, 1]
    assert cpu.cpu_threads(3, processes=4) == 3
