"""Server processes on the loopback, each in a process group that is killed at the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return free.getsockname()[1]


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=60).close()  # a busy machine
    except OSError:
        return False
    return True


class Process:
    """A running server; ``ready`` returns whether it serves."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str],
        ready: Callable[[], bool],
        folder: Path | None = None,
        wait_s: float = 900,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environment),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + wait_s
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"{command[0]} does not serve: {log.read_text()[-3000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
