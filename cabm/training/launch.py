"""Start and end of the processes of one training."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import distributed

from cabm.errors import InputError, PeerLost, WorkerFailed
from cabm.machine.cpu import cpu_threads
from cabm.project.runtime import RuntimeSettings
from cabm.training.group import ALONE, Group, exchange, first_line

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

PARENT_SECONDS = 1.0  # between a worker's checks that its launcher is alive
_STORE = "CABM_PROCESS_STORE"  # environment variable: URL of the file in which workers of one machine meet
_LOOPBACKS = ("lo", "lo0")  # Linux; macOS and BSD


def is_worker() -> bool:
    """Whether `launch` or torchrun started this process."""
    return distributed.is_torchelastic_launched()


@contextmanager
def joined(settings: RuntimeSettings) -> Iterator[Group]:
    """Yield the group of this process: the processes of its launcher, or `ALONE`.

    Raises:
        InputError: this machine has more processes than GPUs.
    """
    if not is_worker():
        yield ALONE
        return
    threading.Thread(target=_end_with, args=(os.getppid(),), name="parent", daemon=True).start()
    cuda = settings.torch_device().type == "cuda"
    if cuda:
        local_rank, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= num_gpus:
            raise InputError(f"runtime.processes is more than the visible GPUs ({num_gpus}); use auto")
        torch.cuda.set_device(local_rank)
    group = Group(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")))
    with exchange():
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            init_method=os.environ.get(_STORE, "env://"),
            rank=group.rank,
            world_size=group.size,
            timeout=timedelta(seconds=settings.timeout_seconds),
        )
    yield group
    # not after an error, because it may wait for processes that have ended
    distributed.destroy_process_group()


def launches(settings: RuntimeSettings) -> bool:
    """Whether this process must `launch` the training processes instead of training itself."""
    several = settings.num_processes() > 1 or _num_nodes() > 1
    return several and not is_worker()


def launch(settings: RuntimeSettings, stage: str) -> None:
    """Run this script in all training processes with torchrun's launcher, and wait until they end.

    torchrun's environment variables name the other nodes (PET_NNODES, PET_RDZV_ENDPOINT and so on). Without
    them, all processes are on this machine.

    Args:
        settings: number of processes and threads.
        stage: name of the stage, which all nodes must be at.

    Raises:
        InputError: torchrun's settings are wrong.
        WorkerFailed: a process failed, or the nodes did not find each other; all processes have ended.
        KeyboardInterrupt: Ctrl-C or SIGTERM; all processes have ended.
    """
    processes = settings.num_processes()
    os.environ.setdefault("OMP_NUM_THREADS", str(cpu_threads(settings.threads, processes)))
    if "LOGLEVEL" not in os.environ:  # one line of ours replaces torchrun's messages
        torchrun_messages = logging.getLogger("torch.distributed.elastic")
        torchrun_messages.addHandler(logging.NullHandler())
        torchrun_messages.propagate = False
    with tempfile.TemporaryDirectory(prefix="cabm-") as folder:
        if _num_nodes() == 1:
            meeting = _meet_in_files(Path(folder))
        else:  # one id per stage: a node that is ahead waits for the others
            meeting = ["--rdzv-id", f"{os.environ.get('PET_RDZV_ID', 'cabm')}-{stage}"]
        _torchrun(["--nproc-per-node", str(processes), *meeting, *sys.argv])


def _torchrun(arguments: list[str]) -> None:
    """Run torchrun's launcher in this process, and translate its errors; see `launch`."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        raise WorkerFailed(_cause(error.failures)) from None
    except RendezvousError as error:
        where = os.environ.get("PET_RDZV_ENDPOINT", "PET_RDZV_ENDPOINT is not set")
        raise WorkerFailed(f"the nodes did not find each other at {where} ({first_line(error)})") from None
    except distributed.DistError as error:
        raise WorkerFailed(f"the other nodes no longer answer ({first_line(error)})") from None
    except ValueError as error:
        raise InputError(f"torchrun's settings (PET_*): {error}") from None
    except SignalException:
        raise KeyboardInterrupt from None


def _meet_in_files(folder: Path) -> list[str]:
    """Return torchrun's options for one machine, whose processes find each other through files.

    torchrun's TCP stores listen on all network interfaces, even with ``--standalone``. Here only the
    backends open sockets, on the loopback.
    """
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ[_STORE] = f"file://{folder / 'workers'}"
    loopback = next((name for _, name in socket.if_nameindex() if name in _LOOPBACKS), None)
    if loopback is not None:
        for backend in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{backend}_SOCKET_IFNAME", loopback)
    files = ["--rdzv-conf", "store_type=file", "--rdzv-endpoint", str(folder / "launcher")]
    return ["--rdzv-backend", "c10d", *files, "--local-addr", "127.0.0.1"]


def _num_nodes() -> int:
    """Return the largest number of nodes in torchrun's environment variable, ``4`` or ``2:4``."""
    nodes = os.environ.get("PET_NNODES", "1")
    try:
        return int(nodes.split(":")[-1])
    except ValueError:
        raise InputError(f"PET_NNODES is {nodes!r}; give a number of nodes") from None


def _cause(failures: Mapping[int, ProcessFailure]) -> str:
    """Return the failure behind the others: a killed process makes the others fail, never the reverse."""

    def order(failure: ProcessFailure) -> tuple[int, int]:
        # torchrun itself ends the other processes with SIGTERM
        killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
        reported = isinstance(failure.message, dict)
        lost = reported and failure.message["lost"]
        return (0 if killed else 1 if reported and not lost else 2 if lost else 3), failure.timestamp

    rank, first = min(failures.items(), key=lambda item: order(item[1]))
    if isinstance(first.message, dict):
        return first.message["message"]
    if first.exitcode < 0:
        return f"process {rank} was ended by {first.signal_name()}; run `dvc repro` again to continue"
    return f"process {rank} ended with status {first.exitcode}"


def report_failure(error: Exception, message: str) -> bool:
    """Write an error's message for the launcher, which prints one message for all processes.

    Returns:
        Whether this process has a launcher; without one nothing is written.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None or not is_worker():
        return False
    for number in (signal.SIGINT, signal.SIGTERM):  # the launcher's signals would interrupt the exit
        signal.signal(number, signal.SIG_IGN)
    extra = {"timestamp": str(int(time.time()))}
    content = {"message": message, "lost": isinstance(error, PeerLost), "extraInfo": extra}
    Path(path).write_text(json.dumps({"message": content}), encoding="utf-8")
    return True


def end_at_once(status: int) -> NoReturn:
    """End this process without the interpreter's clean-up.

    The backend's threads may wait for processes that have ended, and then the clean-up sometimes aborts
    with a message from C++.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end_with(parent: int) -> None:
    """End this process if its launcher was killed and cannot end it any more."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)
