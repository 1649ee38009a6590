"""The section `runtime` of params.yaml: device, threads and precision of a stage."""

from __future__ import annotations

from typing import Literal

import torch

from cabm.errors import InputError
from cabm.machine.cpu import multiplies_bfloat16
from cabm.project.sections import Count, CountOrZero, NotNegative, Positive, Section


class RuntimeSettings(Section):
    """How a stage computes; apart from rounding, the results do not depend on it."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device: auto (a GPU if there is one), cpu or cuda."""

    processes: Count | Literal["auto"] = 1
    """Training processes on this machine, 1 or more; auto: one per visible GPU, or 1 without a GPU."""

    threads: CountOrZero = 0
    """PyTorch threads per process; 0: the machine's cores divided by the processes."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of the convolutions in training: fp32, bf16 or auto (bf16 if the hardware multiplies it)."""

    checkpoint_seconds: NotNegative = 60.0
    """Seconds between two resume states, 0 or more; 0: one after every step."""

    timeout_seconds: Positive = 600.0
    """Seconds a training process waits for the others before it fails, more than 0."""

    def torch_device(self) -> torch.device:
        """Return the device to compute on.

        Raises:
            InputError: ``cuda`` is set, but PyTorch finds no GPU.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("runtime.device is cuda, but PyTorch finds no GPU; use auto or cpu")
        gpu = self.device != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if gpu else "cpu")

    def num_processes(self) -> int:
        """Return the number of training processes on this machine."""
        if self.processes != "auto":
            return self.processes
        return torch.cuda.device_count() if self.torch_device().type == "cuda" else 1

    def autocast(self) -> torch.dtype | None:
        """Return the type of the convolutions in training, None for float32."""
        if self.precision == "auto":
            return torch.bfloat16 if multiplies_bfloat16(self.torch_device()) else None
        return torch.bfloat16 if self.precision == "bf16" else None
