"""A job: one image that is upscaled in a thread of its own, with progress, and that can be cancelled."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Generic, TypeVar

from cabm.errors import InputError, error_line, printable
from cabm.upscaling.jobs import Failure, run_task, survey
from cabm.upscaling.request import UpscaleRequest
from cabm.upscaling.tasks import Task
from cabm.upscaling.upscaler import Report, Upscaler

Result = TypeVar("Result")


class Phase(Enum):
    """What a job is doing, in the order of its life; the last three are its ends."""

    LOADING = "Loading the model"
    SCORING = "Reading the image and scoring its tiles"
    UPSCALING = "Upscaling"
    SHOWING = "Drawing the pictures"
    DONE = "Done"
    CANCELLED = "Cancelled"
    FAILED = "Failed"


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        phase: what it is doing.
        done, total: tiles.
        seconds_left: estimated from the tiles so far; None before there is a rate.
        error: why it failed, in one line.
    """

    phase: Phase = Phase.LOADING
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Upscaled:
    """An image that was upscaled.

    Attributes:
        task: the image and the file that was written.
        report: what it took.
    """

    task: Task
    report: Report


class Cancelled(BaseException):
    """A visitor cancelled the job. No `Exception`, so that nothing takes it for a failure of the image."""


class Job(Generic[Result]):
    """Upscales one image in a thread.

    Args:
        task: the image and the file to write.
        request: how to upscale it.
        load: returns the upscaler for the request.
        show: makes the result of the job of the upscaled image, in the job's thread.

    Attributes:
        result: made by ``show``; None until the job is done.
    """

    def __init__(
        self,
        task: Task,
        request: UpscaleRequest,
        load: Callable[[], Upscaler],
        show: Callable[[Upscaled], Result],
    ) -> None:
        self.result: Result | None = None
        self._task, self._request, self._load, self._show = task, request, load, show
        self._progress = Progress()
        self._first_tile = 0.0
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upscale", daemon=True)

    def start(self) -> Job:
        """Start the thread; return self."""
        self._thread.start()
        return self

    def cancel(self) -> None:
        """Stop at the next tile. Nothing is left of the result."""
        self._cancelled.set()

    def wait(self, seconds: float | None = None) -> Progress:
        """Wait until the thread has ended, at most so many seconds; return the progress."""
        self._thread.join(seconds)
        return self._progress

    @property
    def ended(self) -> bool:
        """Whether the thread has ended."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def _run(self) -> None:
        try:
            upscaled = self._upscale()
            self._enter(Phase.SHOWING)
            result = self._show(upscaled)
            self._check()
            self.result = result
            self._enter(Phase.DONE)
        except Cancelled:
            self._task.output.unlink(missing_ok=True)
            self._enter(Phase.CANCELLED)
        except Exception as error:
            if not isinstance(error, (InputError, OSError)):
                traceback.print_exc(file=sys.stderr)
            self._fail(error_line(error))

    def _upscale(self) -> Upscaled:
        upscaler = self._load()
        self._check()
        found = survey(upscaler, [self._task], self._request)
        if found.failures:
            raise InputError(found.failures[0].reason)
        self._progress = replace(self._progress, total=found.todo[0][1])
        self._enter(Phase.SCORING)
        result = run_task(upscaler, self._task, self._request, progress=self._on_tiles)
        if isinstance(result, Failure):
            if result.traceback:
                print(result.traceback, file=sys.stderr)
            raise InputError(result.reason)
        return Upscaled(self._task, result)

    def _on_tiles(self, count: int) -> None:
        self._check()
        now, done, total = time.monotonic(), self._progress.done + count, self._progress.total
        if not count:
            return
        if self._progress.done == 0:
            self._first_tile, left = now, None  # the first tiles wait for compiled code
        else:
            left = (now - self._first_tile) / (done - 1) * (total - done) if done > 1 else None
        self._progress = Progress(Phase.UPSCALING, done, total, left)

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled

    def _enter(self, phase: Phase) -> None:
        self._progress = replace(self._progress, phase=phase, seconds_left=None)

    def _fail(self, line: str) -> None:
        # a visitor knows the file's name, not where the server keeps it
        line = line.replace(str(self._task.output), self._task.output.name)
        line = line.replace(str(self._task.source), self._task.source.name)
        self._progress = replace(self._progress, error=printable(line))
        self._enter(Phase.FAILED)
