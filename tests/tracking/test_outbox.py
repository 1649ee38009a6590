from __future__ import annotations

import threading
import time

import pytest

from cabm.tracking import outbox as outbox_module
from cabm.tracking.outbox import BATCH_RECORDS, RECORD_BYTES, Outbox


class Store:
    """A store in memory that can be down or slow."""

    def __init__(self) -> None:
        self.up = True
        self.received: list[object] = []
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.num_tries = 0
        self.warnings: list[str] = []

    def connect(self) -> Store:
        self.check()
        return self

    def check(self) -> None:
        self.num_tries += 1
        self.gate.wait(20)
        if not self.up:
            raise ConnectionError("down")

    def send(self, records: list[object]) -> None:
        self.check()
        if "poison" in records:
            raise ConnectionError("500")
        self.batches.append(len(records))
        self.received += records

    def open(self, **options: int) -> Outbox[Store]:
        return Outbox(
            connect=self.connect,
            send=Store.send,
            is_transient=lambda error: isinstance(error, ConnectionError),
            probe=Store.check,
            warn=lambda trouble, error: self.warnings.append(trouble),
            **options,
        )


@pytest.fixture()
def store() -> Store:
    return Store()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(outbox_module, "LAST_RETRY_S", 0.05)
    monkeypatch.setattr(outbox_module, "CLOSING_RETRY_S", 0.02)
    monkeypatch.setattr(outbox_module, "GRACE_S", 0.3)


def wait_for(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_order_is_kept_between_records_and_jobs(store: Store) -> None:
    outbox = store.open()
    outbox.put_records([1, 2])
    outbox.put_job(lambda session: session.received.append("job"))
    outbox.put_records([3])
    assert outbox.close(10) == 0
    assert store.received == [1, 2, "job", 3]


def test_waiting_records_go_out_in_full_batches(store: Store) -> None:
    store.gate.clear()
    outbox = store.open()
    for start in range(0, 5000, 10):
        assert outbox.put_records(list(range(start, start + 10)))
    store.gate.set()
    assert outbox.close(10) == 0
    assert store.received == list(range(5000))
    assert len(store.batches) <= 6
    assert max(store.batches) <= BATCH_RECORDS


def test_more_records_than_fit_in_a_batch(store: Store) -> None:
    outbox = store.open()
    outbox.put_records(list(range(2500)))
    assert outbox.close(10) == 0
    assert store.received == list(range(2500))
    assert max(store.batches) <= BATCH_RECORDS


def test_a_store_that_comes_back_receives_what_it_missed(store: Store) -> None:
    outbox = store.open()
    outbox.put_records([0])
    wait_for(lambda: store.received == [0])
    store.up = False
    for value in range(1, 100):
        outbox.put_records([value])
    wait_for(lambda: store.warnings)
    store.up = True
    wait_for(lambda: len(store.received) == 100)
    assert outbox.close(10) == 0
    assert store.received == list(range(100))
    assert store.warnings == ["unreachable"]


def test_a_store_that_starts_later_receives_everything(store: Store) -> None:
    store.up = False
    outbox = store.open()
    outbox.put_records([1])
    wait_for(lambda: store.num_tries > 2)
    store.up = True
    assert outbox.close(10) == 0
    assert store.received == [1]


def test_closing_waits_only_briefly_for_a_lost_store(store: Store) -> None:
    store.up = False
    outbox = store.open()
    outbox.put_records([1, 2, 3])
    outbox.put_job(lambda session: None)
    started = time.monotonic()
    assert outbox.close(60) == 4
    assert time.monotonic() - started < 2
    assert not outbox.put_records([4])


def test_closing_waits_only_briefly_for_a_store_that_hangs(store: Store) -> None:
    outbox = store.open()
    outbox.put_records([1])
    wait_for(lambda: store.received == [1])
    store.gate.clear()
    outbox.put_records([2])
    started = time.monotonic()
    assert outbox.close(0.2) == 1
    assert time.monotonic() - started < 2
    store.gate.set()


def test_a_store_that_will_never_work_is_given_up() -> None:
    store = Store()

    def connect() -> Store:
        raise ValueError("no such store")

    store.connect = connect  # type: ignore[method-assign]
    outbox = store.open()
    outbox.put_records([1])
    wait_for(lambda: store.warnings == ["refused"])
    assert not outbox.put_job(lambda session: None)
    assert outbox.close(10) == 2
    assert store.warnings == ["refused"]


def test_a_request_that_the_store_cannot_handle_is_dropped(store: Store) -> None:
    outbox = store.open()

    def broken(session: Store) -> None:
        raise ValueError("bad name")

    outbox.put_job(broken)
    outbox.put_job(broken)
    outbox.put_records(["poison"])
    outbox.put_job(lambda session: session.received.append("good"))
    assert outbox.close(10) == 3
    assert store.received == ["good"]
    assert store.warnings == ["rejected"]


def test_the_queue_is_bounded_and_putting_never_waits(store: Store) -> None:
    store.gate.clear()
    outbox = store.open(max_bytes=100 * RECORD_BYTES)
    started = time.monotonic()
    accepted = sum(outbox.put_records([value]) for value in range(1000))
    assert time.monotonic() - started < 1
    assert accepted == 100
    assert store.warnings == ["full"]
    store.gate.set()
    assert outbox.close(10) == 900
    assert store.received == list(range(100))
