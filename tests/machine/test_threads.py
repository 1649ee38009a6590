"""Work on several threads whose results come in order."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from cabm.machine.cpu import available_cores
from cabm.machine.threads import in_order, limited_threads, thread_count


@pytest.fixture(autouse=True)
def threads_of_torch():
    before = torch.get_num_threads()
    assert thread_count() == before
    yield
    assert thread_count() == torch.get_num_threads() == before


@pytest.mark.parametrize(("count", "threads"), [(0, 2), (1, 3), (7, 1), (7, 3), (2, 5)])
def test_results_come_in_order_and_pieces_share_the_threads(count, threads):
    together = threading.Barrier(max(1, min(count, threads)))

    def work(index: int) -> tuple[int, int, int]:
        if index < together.parties:
            together.wait(timeout=30)  # the first of all threads are at work at once
        return index, torch.get_num_threads(), thread_count()

    found = list(in_order(work, count, threads=threads))
    share = threads // max(1, min(count, threads))
    assert found == [(index, share, share) for index in range(count)]


def test_a_failure_comes_out_and_what_had_not_begun_is_dropped():
    begun = []

    def work(index: int) -> int:
        begun.append(index)
        if index == 1:
            raise ValueError("broken")
        time.sleep(0.001)  # or all is done before a busy machine lets the failure come out
        return index

    results = in_order(work, 10_000, threads=2)
    assert next(results) == 0
    with pytest.raises(ValueError, match="broken"):
        list(results)
    assert len(begun) < 10_000


def test_a_caller_that_stops_ends_the_work():
    begun, go_on = [], threading.Event()

    def work(index: int) -> int:
        begun.append(index)
        if index:
            go_on.wait(timeout=30)
        return index

    results = in_order(work, 100, threads=2)
    assert next(results) == 0
    threading.Timer(0.2, go_on.set).start()
    results.close()
    assert len(begun) < 100


def test_threads_hold_within_the_block():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), limited_threads(before + 1):
        assert thread_count() == torch.get_num_threads() == before + 1
        with limited_threads(before + 2):
            assert thread_count() == before + 2
        assert thread_count() == torch.get_num_threads() == before + 1
        raise RuntimeError
    assert thread_count() == torch.get_num_threads() == before
    with limited_threads(None):
        assert thread_count() == torch.get_num_threads() == before


def test_work_takes_as_many_threads_as_the_block_around_it_allows():
    with limited_threads(3):
        assert set(in_order(lambda _: thread_count(), 1)) == {3}
        assert set(in_order(lambda _: thread_count(), 5)) == {1}


@pytest.mark.parametrize(("asked", "expected"), [("3", 3), ("0", None), ("2,1", None), ("", None)])
def test_without_pytorch_the_environment_or_the_cpus_decide(asked, expected):
    script = """
import sys
from cabm.machine.threads import in_order, limited_threads, thread_count
print(thread_count(), [*in_order(lambda _: thread_count(), 2, threads=4)])
with limited_threads(7):
    assert thread_count() == 7
assert "torch" not in sys.modules
"""
    environment = os.environ | {"OMP_NUM_THREADS": asked}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
    )
    if expected is None:
        expected = available_cores()
    assert found.stdout.split(maxsplit=1) == [str(expected), "[2, 2]\n"]


def test_a_generator_that_is_closed_late_leaves_no_limit_behind() -> None:
    """PyTorch's own number, which this would restore too late, is left out here."""
    script = """
from cabm.machine.threads import in_order, limited_threads, thread_count
before = thread_count()
with limited_threads(before + 1):
    results = in_order(lambda index: index, 6)
    next(results)
results.close()
assert thread_count() == before
"""
    subprocess.run([sys.executable, "-c", script], check=True)
