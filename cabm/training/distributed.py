"""One training on several processes: how they start, what they exchange, and how they end.

Every process holds the whole model and takes its share of each batch. After the backward pass the
gradients are averaged in one flat sum, so that all processes take the step that one process would take on
the whole batch. That is done by hand and not by DistributedDataParallel, whose overlap with the
backward pass gains nothing on networks this small.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable

from cabm.errors import InputError, PeerLost, WorkerFailed
from cabm.machine.cpu import cpu_threads
from cabm.project.sections import RuntimeSettings

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

PARENT_SECONDS = 1.0  # how often a worker looks whether its launcher lives


@dataclass(frozen=True)
class Group:
    """The processes of one training. One process alone is a group too, and its calls change nothing.

    Every method is called by all processes, in the same order, and raises `PeerLost` where another one has
    ended or does not answer.

    Attributes:
        rank: of this process, 0..size - 1.
        size: number of processes.
        local_size: how many of them run on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files, records the run and shows its progress."""
        return self.rank == 0

    def mean(self, values: Mapping[str, float]) -> Mapping[str, float]:
        """Return the mean of each number over the processes, in double precision."""
        if self.size == 1:
            return values
        packed = torch.tensor(list(values.values()), dtype=torch.float64)
        with _exchange():
            distributed.all_reduce(packed)
        return dict(zip(values, (packed / self.size).tolist(), strict=True))

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradient of each share's loss by that of their mean.

        A parameter that no process reached keeps no gradient, as in one process, where its optimizer state
        then stands still; one that some reached counts as 0 in the others.
        """
        if self.size == 1:
            return
        reached = [float(parameter.grad is not None) for parameter in parameters]
        pieces = [
            torch.zeros_like(parameter).flatten() if parameter.grad is None else parameter.grad.flatten()
            for parameter in parameters
        ]
        flat = torch.cat([pieces[0].new_tensor(reached), *pieces])
        with _exchange():
            distributed.all_reduce(flat)
        counts, *means = (flat / self.size).split([len(pieces), *(len(piece) for piece in pieces)])
        for parameter, count, mean in zip(parameters, counts.tolist(), means, strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)  # in the parameter's layout
                parameter.grad.copy_(mean.view(parameter.shape))

    def from_leader(self, content: bytes) -> bytes:
        """Return what process 0 gave; what the others give does not count."""
        if self.size == 1:
            return content
        length = torch.tensor([len(content)])
        with _exchange():
            distributed.broadcast(length, 0)
            buffer = torch.zeros(int(length), dtype=torch.uint8)
            if self.leads:
                buffer = _bytes(content)
            distributed.broadcast(buffer, 0)
        return buffer.numpy().tobytes()

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank. Values are what JSON can say."""
        if self.size == 1:
            return [value]
        own = _bytes(json.dumps(value).encode())
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _exchange():
            distributed.all_gather(lengths, torch.tensor([len(own)]))
            padded = torch.zeros(int(max(lengths)), dtype=torch.uint8)
            padded[: len(own)] = own
            contents = [torch.empty_like(padded) for _ in range(self.size)]
            distributed.all_gather(contents, padded)
        return [
            json.loads(content[: int(length)].numpy().tobytes())
            for content, length in zip(contents, lengths, strict=True)
        ]

    def require_same(self, value: str, what: str) -> None:
        """Check that all processes have the same ``value``.

        Raises:
            InputError: some process has another; ``what`` names it.
        """
        others = [rank for rank, other in enumerate(self.gather(value)) if other != value]
        if others:
            raise InputError(
                f"processes {self.rank} and {others[0]} differ in {what}; give every node the same files"
            )

    def synchronise_batch_norm(self, model: nn.Module) -> None:
        """Make batch norms take mean and variance over the whole batch, and not over each share.

        Parameters, buffers and their names stay. On GPUs that is `torch.nn.SyncBatchNorm`, which
        has no implementation for CPUs.
        """
        if self.size == 1:
            return
        if next(model.parameters()).is_cuda:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
            return
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, _SynchronisedBatchNorm.of(child))


def _bytes(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


ALONE = Group()


def is_worker() -> bool:
    """Whether torchrun, or `launch`, started this process as one of several."""
    return distributed.is_torchelastic_launched()


@contextmanager
def joined(settings: RuntimeSettings) -> Iterator[Group]:
    """Yield the group that torchrun started this process in, or that of the process alone.

    Raises:
        InputError: there are more processes than GPUs on this machine.
    """
    if not is_worker():
        yield ALONE
        return
    threading.Thread(target=_end_with, args=(os.getppid(),), name="parent", daemon=True).start()
    cuda = settings.torch_device().type == "cuda"
    if cuda:
        local_rank, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= num_gpus:
            raise InputError(
                f"runtime.processes: there are more processes than the {num_gpus} visible GPUs; use auto"
            )
        torch.cuda.set_device(local_rank)
    with _exchange():
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=settings.timeout_seconds)
        )
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    yield Group(distributed.get_rank(), distributed.get_world_size(), local_size)
    # not after an error: it may wait for processes that are gone
    distributed.destroy_process_group()


def launches(settings: RuntimeSettings) -> bool:
    """Whether this process should start the training's processes, instead of being one of them."""
    several = settings.num_processes() > 1 or _num_nodes() > 1
    return several and not is_worker()


def launch(settings: RuntimeSettings, stage: str) -> None:
    """Run this very script in all processes, as torchrun does, and return when they have ended well.

    torchrun's own environment variables say where the other nodes are (PET_NNODES, PET_RDZV_ENDPOINT and
    so on); without them, there is this machine alone.

    Raises:
        InputError: torchrun's settings make no sense.
        WorkerFailed: a process failed, or the nodes did not find each other; the others have been ended.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the processes have been ended.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    processes = settings.num_processes()
    arguments = ["--nproc-per-node", str(processes)]
    if _num_nodes() == 1:
        arguments += _on_loopback()
    else:  # nodes that are at another stage wait for each other, and do not mix
        arguments += ["--rdzv-id", f"{os.environ.get('PET_RDZV_ID', 'cabm')}-{stage}"]
    os.environ.setdefault("OMP_NUM_THREADS", str(cpu_threads(settings.threads, processes)))
    if "LOGLEVEL" not in os.environ:  # it says in twenty lines what we say in one
        torchrun_messages = logging.getLogger("torch.distributed.elastic")
        torchrun_messages.addHandler(logging.NullHandler())
        torchrun_messages.propagate = False
    try:
        run(parse_args([*arguments, *sys.argv]))
    except ChildFailedError as error:
        raise WorkerFailed(_cause(error.failures)) from None
    except RendezvousError as error:
        where = os.environ.get("PET_RDZV_ENDPOINT", "PET_RDZV_ENDPOINT is not set")
        raise WorkerFailed(f"the nodes did not find each other at {where} ({_first_line(error)})") from None
    except distributed.DistError as error:
        raise WorkerFailed(f"the other nodes cannot be reached any more ({_first_line(error)})") from None
    except ValueError as error:
        raise InputError(f"torchrun's settings (PET_*): {error}") from None
    except SignalException:
        raise KeyboardInterrupt from None


def _on_loopback() -> list[str]:
    """Return the launcher's options for one machine, and keep what its processes exchange inside it."""
    from cabm.training import rendezvous

    rendezvous.register()
    interface = rendezvous.loopback_interface(name for _, name in socket.if_nameindex())
    if interface is not None:
        for backend in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{backend}_SOCKET_IFNAME", interface)
    loopback = rendezvous.LOOPBACK
    return ["--rdzv-backend", rendezvous.BACKEND, "--rdzv-endpoint", loopback, "--local-addr", loopback]


def _num_nodes() -> int:
    """Return the most nodes that torchrun may use, from its environment variable: ``4`` or ``2:4``."""
    nodes = os.environ.get("PET_NNODES", "1")
    try:
        return int(nodes.split(":")[-1])
    except ValueError:
        raise InputError(f"PET_NNODES is {nodes!r}; give a number of nodes") from None


def _cause(failures: Mapping[int, ProcessFailure]) -> str:
    """Return what began it: a killed process leaves the others without a peer, never the other way."""

    def order(failure: ProcessFailure) -> tuple[int, int]:
        killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM  # that is what ends the rest
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
    """Leave the message where the launcher of this process finds it, which prints one for all.

    Returns:
        Whether this process has a launcher; otherwise nothing is done.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None or not is_worker():
        return False
    for number in (signal.SIGINT, signal.SIGTERM):  # the launcher's, that would break off the exit
        signal.signal(number, signal.SIG_IGN)
    extra = {"timestamp": str(int(time.time()))}
    content = {"message": message, "lost": isinstance(error, PeerLost), "extraInfo": extra}
    Path(path).write_text(json.dumps({"message": content}), encoding="utf-8")
    return True


def end_at_once(status: int) -> NoReturn:
    """End this process without the interpreter's own clearing up.

    The backend keeps threads that wait for processes which are gone; clearing up then aborts now and then,
    in a line of C++ that nobody can do anything with.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end_with(parent: int) -> None:
    """End this process when its launcher has gone, which could not end it any more: it was killed."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


@contextmanager
def _exchange() -> Iterator[None]:
    """Name what broken connections and timeouts mean; the backends raise nothing narrower."""
    try:
        yield
    except RuntimeError as error:
        message = f"another process of this training ended or does not answer ({_first_line(error)})"
        raise PeerLost(message) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class _Sum(torch.autograd.Function):
    """Sum over processes, whose gradient is the sum over processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        with _exchange():
            distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.forward(ctx, grad)


class _SynchronisedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the equal shares of all processes; in evaluation an ordinary one."""

    @classmethod
    def of(cls, module: nn.BatchNorm2d) -> _SynchronisedBatchNorm:
        """Return one that shares the parameters and buffers of ``module``."""
        twin = cls(module.num_features, module.eps, module.momentum)
        twin.weight, twin.bias = module.weight, module.bias
        twin.running_mean, twin.running_var = module.running_mean, module.running_var
        twin.num_batches_tracked = module.num_batches_tracked
        return twin.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B,C,H,W) over batch and space."""
        if not self.training:
            return super().forward(x)
        shares, over = distributed.get_world_size(), (0, 2, 3)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = _Sum.apply(wide.mean(over)) / shares
        centred = wide - mean.view(1, -1, 1, 1)
        variance = _Sum.apply(centred.square().mean(over)) / shares
        with torch.no_grad():
            count = x.numel() // x.shape[1] * shares
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)
