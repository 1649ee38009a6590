"""The processes that train one model together, and what they exchange.

Every process holds the whole model and takes its share of each batch. After the backward pass one flat sum
averages the gradients, so that all processes take the step that one process would take on the whole batch.
`torch.nn.parallel.DistributedDataParallel` is not used: its overlap with the backward pass gains nothing
on networks this small.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from cabm.errors import InputError, PeerLost


@dataclass(frozen=True)
class Group:
    """The processes of one training; a single process is a group that exchanges nothing.

    All processes must call the same methods in the same order. Each raises `PeerLost` if another process
    has ended or does not answer.

    Attributes:
        rank: number of this process, 0..size - 1.
        size: number of processes.
        local_size: number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files, records the run and shows progress."""
        return self.rank == 0

    def mean(self, values: Mapping[str, float]) -> Mapping[str, float]:
        """Return the mean of each number over the processes, in double precision."""
        if self.size == 1:
            return values
        packed = torch.tensor(list(values.values()), dtype=torch.float64)
        with exchange():
            distributed.all_reduce(packed)
        return dict(zip(values, (packed / self.size).tolist(), strict=True))

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients over the processes, in place.

        Which parameters have a gradient depends on the model alone, so it is the same in all processes.
        """
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with exchange():
            distributed.all_reduce(flat)
        means = (flat / self.size).split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view(gradient.shape))

    def from_leader(self, content: bytes) -> bytes:
        """Return the bytes of process 0; those of the other processes are ignored."""
        if self.size == 1:
            return content
        length = torch.tensor([len(content)])
        with exchange():
            distributed.broadcast(length, 0)
            buffer = torch.zeros(int(length), dtype=torch.uint8)
            if self.leads:
                buffer = _bytes(content)
            distributed.broadcast(buffer, 0)
        return buffer.numpy().tobytes()

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes by rank; they must be JSON values."""
        if self.size == 1:
            return [value]
        own = _bytes(json.dumps(value).encode())
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with exchange():
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
            InputError: the values differ; the message names them as ``what``.
        """
        others = [rank for rank, other in enumerate(self.gather(value)) if other != value]
        if others:
            raise InputError(
                f"processes {self.rank} and {others[0]} differ in {what}; give every node the same files"
            )


ALONE = Group()


@contextmanager
def exchange() -> Iterator[None]:
    """Turn the backends' plain RuntimeErrors into `PeerLost`.

    Raises:
        PeerLost: a connection broke, or a process did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        message = f"another process of this training ended or does not answer ({first_line(error)})"
        raise PeerLost(message) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, at most 200 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _bytes(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())
