"""Batch norm over the whole batch of several processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable

from cabm.training.group import Group, exchange


def synchronise_batch_norm(model: nn.Module, group: Group) -> None:
    """Make batch norms take mean and variance over the whole batch instead of each process's share.

    Parameters, buffers and their names stay. On GPUs this is `torch.nn.SyncBatchNorm`, which has no
    implementation for CPUs.
    """
    if group.size == 1:
        return
    if next(model.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _SynchronisedBatchNorm.of(child))


class _Sum(torch.autograd.Function):
    """Sum over the processes; its gradient is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        with exchange():
            distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.forward(ctx, grad)


class _SynchronisedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the equal shares of all processes; in evaluation mode an ordinary batch norm."""

    @classmethod
    def of(cls, module: nn.BatchNorm2d) -> _SynchronisedBatchNorm:
        """Return a synchronised batch norm that shares the parameters and buffers of ``module``."""
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
