"""Loops compiled by numba: where it fails, their users take PyTorch, and the process says so once."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numba
import pytest

from cabm.engine import elementwise
from cabm.engine import fused as fused_blocks
from cabm.imaging import bicubic
from cabm.machine import compiled
from cabm.machine.compiled import compiles_for_this_cpu, none_if_numba_fails
from cabm.quant import fused

USERS = [bicubic._loop, elementwise.compiled, fused._loops]


@pytest.fixture
def forgetful() -> Iterator[None]:
    cached = [*USERS, fused_blocks.compiled, compiled._warn_once]
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()
    for user in USERS:
        user()  # here, not in a test that has replaced what it tries


@pytest.mark.usefixtures("forgetful")
def test_a_numba_that_must_not_compile_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert [user() for user in [*USERS, fused_blocks.compiled]] == [None] * 4
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "numba fails (RuntimeError: NUMBA_DISABLE_JIT is set); slower code runs instead"
    )


@pytest.mark.usefixtures("forgetful")
def test_the_warning_is_one_line_whatever_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    @none_if_numba_fails
    def prepare() -> None:
        raise SystemError("initialization of _internal failed\nmore")

    assert prepare() is None
    assert "(SystemError: initialization of _internal failed);" in caplog.text
    assert "more" not in caplog.text


@pytest.mark.parametrize(("name", "expected"), [(None, True), ("host", True), ("generic", False)])
def test_numba_can_be_told_to_compile_for_another_cpu(
    name: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CPU_NAME", name)
    monkeypatch.setattr(numba.config, "CPU_FEATURES", None)
    assert compiles_for_this_cpu() is expected
