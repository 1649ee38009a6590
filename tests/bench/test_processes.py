"""Processes of contenders: what runs where, and what happens when one fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cabm.bench.processes import OwnProcess


def writers(folder: Path) -> dict[str, Callable[[], object]]:
    """Return runs that write the number of their process."""
    return {name: lambda name=name: (folder / name).write_text(str(os.getpid())) for name in ("a", "b")}


def allocating() -> dict[str, Callable[[], object]]:
    """Return a run that fills 300 MB."""
    return {"fill": lambda: np.ones(300 * 2**20, np.uint8).sum()}


def failing() -> dict[str, Callable[[], object]]:
    """Fail."""
    raise ValueError("no such runtime")


def dying() -> dict[str, Callable[[], object]]:
    """Return a run that ends its process."""
    return {"die": lambda: os._exit(7)}


def test_runs_in_one_process_that_is_not_this_one(tmp_path: Path) -> None:
    with closing(OwnProcess(partial(writers, tmp_path))) as process:
        assert list(process.runs) == ["a", "b"]
        process.runs["b"]()
        assert not (tmp_path / "a").exists()
        process.runs["a"]()
    numbers = {(tmp_path / name).read_text() for name in "ab"}
    assert len(numbers) == 1 and numbers != {str(os.getpid())}


def test_peak_memory_is_that_of_the_process() -> None:
    with closing(OwnProcess(allocating)) as process:
        before = process.memory_before
        assert before <= process.peak_memory() < 1.1 * before
        process.runs["fill"]()
        assert process.peak_memory() - before > 250 * 2**20


def test_a_process_that_fails_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="process ended with code 1"):
        OwnProcess(failing)
    assert "no such runtime" in capfd.readouterr().err


def test_a_process_that_dies_while_it_is_timed_is_reported() -> None:
    with closing(OwnProcess(dying)) as process, pytest.raises(RuntimeError, match="code 7"):
        process.runs["die"]()
