"""Uncompiled loops would take hours: without a compiler their users do the same in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cabm.engine import blocks, elementwise
from cabm.imaging import bicubic
from cabm.machine.compiled import jit
from cabm.quant import fused

numba = pytest.importorskip("numba")
USERS = [bicubic._loop, blocks.compiled, elementwise.compiled, fused._loops]


@pytest.fixture
def forgetful() -> Iterator[None]:
    for user in USERS:
        user.cache_clear()
    yield
    for user in USERS:
        user.cache_clear()
        user()  # here, not in a test that has replaced what it tries


@pytest.mark.usefixtures("forgetful")
def test_a_numba_that_is_told_not_to_compile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert [user() for user in USERS] == [None] * 4


def test_a_place_that_holds_no_cache_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    right = numba.njit

    def njit(**options: object) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return right(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert jit(lambda x: x + 1)(1) == 2
