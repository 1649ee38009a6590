"""A bounded queue with one background thread, which writes to a store without waiting for it.

MLflow's asynchronous logging does not replace it: it drops records when the store fails once, creates the
run in the caller's thread, and waits for the store without a limit.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

Session = TypeVar("Session")
Trouble = Literal["unreachable", "refused", "rejected", "full"]

BATCH_RECORDS = 1000  # MLflow refuses more metrics than this in one request
RECORD_BYTES = 400  # rough size of one waiting record
FIRST_RETRY_S = 0.2
LAST_RETRY_S = 30.0
CLOSING_RETRY_S = 0.5
GRACE_S = 3.0  # most seconds that a store which does not answer may delay the end of a run
NUM_TRIES = 3


@dataclass
class _Parcel(Generic[Session]):
    """One job, or records that are sent in one request."""

    size: int
    job: Callable[[Session], None] | None = None
    records: list[Any] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.records) if self.job is None else 1


class Outbox(Generic[Session]):
    """Sends records and jobs, in order, from one background thread.

    Putting never waits and never raises. After a transient error, the outbox retries with growing pauses,
    so that a store that comes back receives all records. After a permanent error, it drops the parcel. It
    also drops parcels that do not fit into ``max_bytes``. It counts everything it drops.

    Args:
        connect: opens the session, in the thread; after a permanent error the outbox gives up.
        send: sends up to ``BATCH_RECORDS`` records through the session.
        is_transient: whether a retry may help after an exception.
        probe: raises if the store does not answer. This distinguishes a lost store (retry) from a
            request that the store cannot handle (drop).
        warn: called at most once for each kind of trouble.
        max_bytes: most memory of waiting parcels.
    """

    def __init__(
        self,
        connect: Callable[[], Session],
        send: Callable[[Session, list[Any]], None],
        is_transient: Callable[[Exception], bool],
        probe: Callable[[Session], Any],
        warn: Callable[[Trouble, Exception | None], None],
        *,
        max_bytes: int = 64 * 2**20,
    ) -> None:
        self._connect = connect
        self._send = send
        self._is_transient = is_transient
        self._probe = probe
        self._warn = warn
        self._max_bytes = max_bytes
        self._parcels: deque[_Parcel[Session]] = deque()
        self._bytes = 0
        self._dropped = 0
        self._given_up = False
        self._failing_since: float | None = None
        self._deadline: float | None = None  # set when the outbox is closing
        self._warned: set[Trouble] = set()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def put_records(self, records: Sequence[Any]) -> bool:
        """Queue records; return False if they were dropped."""
        for start in range(0, len(records), BATCH_RECORDS):
            batch = list(records[start : start + BATCH_RECORDS])
            if not self._put(_Parcel(RECORD_BYTES * len(batch), records=batch)):
                return False
        return True

    def put_job(self, job: Callable[[Session], None], size: int = RECORD_BYTES) -> bool:
        """Queue a function of the session that holds ``size`` bytes; return False if it was dropped."""
        return self._put(_Parcel(size, job=job))

    @property
    def silence_s(self) -> float:
        """Seconds for which the store has not answered; 0 if it answers."""
        since = self._failing_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self, wait_s: float) -> int:
        """Send the waiting parcels for at most ``wait_s`` seconds; return the number of dropped records.

        A store that does not answer gets at most ``GRACE_S`` seconds.
        """
        with self._changed:
            self._deadline = time.monotonic() + (min(wait_s, GRACE_S) if self.silence_s else wait_s)
            self._changed.notify_all()
        self._thread.join(self._deadline - time.monotonic())
        self._give_up()
        return self._dropped

    def _put(self, parcel: _Parcel[Session]) -> bool:
        with self._changed:
            full = self._bytes + parcel.size > self._max_bytes
            if self._given_up or full:
                self._dropped += parcel.count
            else:
                self._bytes += parcel.size
                # the thread may be sending the first parcel already, so never add to that one
                last = self._parcels[-1] if len(self._parcels) > 1 else None
                if last and last.records and 0 < len(parcel.records) <= BATCH_RECORDS - last.count:
                    last.records += parcel.records
                    last.size += parcel.size
                else:
                    self._parcels.append(parcel)
                self._changed.notify_all()
                return True
        if full:
            self._warn_once("full")
        return False

    def _work(self) -> None:
        session = self._open()
        while session is not None:
            with self._changed:
                self._changed.wait_for(lambda: self._parcels or self._deadline is not None)
                if not self._parcels:
                    return
                parcel = self._parcels[0]
            if not self._deliver(session, parcel):
                return
            with self._changed:
                if self._given_up:
                    return
                self._parcels.popleft()
                self._bytes -= parcel.size

    def _open(self) -> Session | None:
        pause = FIRST_RETRY_S
        while True:
            try:
                session = self._connect()
            except Exception as error:
                if not self._is_transient(error):
                    self._warn_once("refused", error)
                    self._give_up()
                    return None
                self._lost(error)
                if not self._pause(pause):
                    return None
                pause = min(2 * pause, LAST_RETRY_S)
            else:
                self._failing_since = None
                return session

    def _deliver(self, session: Session, parcel: _Parcel[Session]) -> bool:
        """Send or drop one parcel; return False if the time is over."""
        pause = FIRST_RETRY_S
        num_refusals = 0
        while True:
            try:
                if parcel.job is None:
                    self._send(session, parcel.records)
                else:
                    parcel.job(session)
            except Exception as error:
                transient = self._is_transient(error)
                answers = transient and self._answers(session)
                num_refusals += answers
                if not transient or num_refusals == NUM_TRIES:
                    self._warn_once("rejected", error)
                    with self._changed:
                        self._dropped += parcel.count
                    return True
                if not answers:
                    self._lost(error)
                if not self._pause(pause):
                    return False
                pause = min(2 * pause, LAST_RETRY_S)
            else:
                self._failing_since = None
                return True

    def _answers(self, session: Session) -> bool:
        try:
            self._probe(session)
        except Exception:
            return False
        return True

    def _lost(self, error: Exception) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        self._warn_once("unreachable", error)

    def _pause(self, seconds: float) -> bool:
        """Wait before the next try; return False if the outbox is closing and its time is over."""
        with self._changed:
            if self._deadline is None:
                self._changed.wait_for(lambda: self._deadline is not None, timeout=seconds)
                return True
            now = time.monotonic()
            self._deadline = min(self._deadline, now + GRACE_S)
            if now + CLOSING_RETRY_S >= self._deadline:
                return False
        time.sleep(CLOSING_RETRY_S)
        return True

    def _give_up(self) -> None:
        with self._changed:
            self._given_up = True
            self._dropped += sum(parcel.count for parcel in self._parcels)
            self._parcels.clear()
            self._bytes = 0

    def _warn_once(self, kind: Trouble, error: Exception | None = None) -> None:
        if kind not in self._warned and not self._given_up:  # no warnings after closing
            self._warned.add(kind)
            self._warn(kind, error)
