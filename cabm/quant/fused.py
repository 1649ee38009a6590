"""The quantizers' operations on activations, each as one compiled loop (`cabm.quant.loops`).

They take float32 or bfloat16 tensors on the CPU in channels-last layout; `available` decides for a tensor.
`cabm.quant.functional` has the same operations in PyTorch for all others. Both agree to the bit forward,
and up to rounding in sums.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cabm.machine.compiled import Loop, jit, none_if_numba_fails

TYPES = (torch.float32, torch.bfloat16)


def available(x: Tensor, *, types: tuple[torch.dtype, ...] = (torch.float32,)) -> bool:
    """Return whether the loops can take activations (B,C,H,W) like ``x``; the first call compiles."""
    return (
        x.device.type == "cpu"
        and x.dtype in types
        and x.dim() == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and _loops() is not None
    )


def inverse_step(alpha: Tensor, levels: Tensor | float) -> Tensor:
    """Return n / alpha, rounded once: PyTorch multiplies a number by the reciprocal of a tensor."""
    return torch.as_tensor(levels, dtype=alpha.dtype, device=alpha.device) / alpha


def encode(x: Tensor, alpha: Tensor, levels: Tensor | float, out_type: torch.dtype) -> Tensor:
    """Return the codes round(clip(x) n / alpha) as ``out_type``, one of `TYPES`."""
    batch = len(x)
    inverse, bound = _each(inverse_step(alpha, levels), batch), _each(levels, batch)
    out = torch.empty_like(x, dtype=out_type)
    _run("encode", _rows(x), inverse, bound, np.ones(batch, np.float32), _rows(out))
    return out


def decode(x: Tensor, alpha: Tensor, levels: Tensor | float) -> Tensor:
    """Return the values of the codes of ``x`` as float32."""
    batch = len(x)
    inverse, bound = _each(inverse_step(alpha, levels), batch), _each(levels, batch)
    out = torch.empty_like(x)
    _run("encode", _rows(x), inverse, bound, _each(alpha / levels, batch), _rows(out))
    return out


def encode_gradient(grad: Tensor, x: Tensor, alpha: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return grad * slope, 0 outside the clip, and the sum of sign(x) * grad * slope outside it per sample.

    Args:
        grad, x: (B,C,H,W).
        alpha, slope: (B,) or (1,).
    """
    batch, _, rows, _ = x.shape
    grad = grad.contiguous(memory_format=torch.channels_last)
    grad_x = torch.empty_like(x)
    clipped = np.empty((batch, rows), np.float32)
    _run(
        "encode_gradient",
        _rows(grad),
        _rows(x),
        _each(alpha, batch),
        _each(slope, batch),
        _rows(grad_x),
        clipped,
    )
    return grad_x, torch.from_numpy(clipped).sum(1)


def mixture_gradient(
    grad: Tensor, x: Tensor, alphas: Tensor, levels: Tensor, probabilities: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the mixture of all widths, and the sums for alphas and probabilities.

    Args:
        grad, x: (B,C,H,W).
        alphas, levels: (K,).
        probabilities: (B,K).
        slope: (B,).

    Returns:
        The gradient of sum_k p_k clip_k(x) times slope (B,C,H,W); sums of sign(x) * grad outside each clip
        (B,K); sums of grad * codes (B,K).
    """
    batch, _, rows, _ = x.shape
    grad = grad.contiguous(memory_format=torch.channels_last)
    grad_x = torch.empty_like(x)
    clipped = np.empty((batch, rows, len(alphas)), np.float32)
    coded = np.empty_like(clipped)
    constants = (alphas, levels, probabilities, slope)
    _run(
        "mixture_gradient",
        _rows(grad),
        _rows(x),
        *(value.detach().contiguous().numpy() for value in constants),
        _rows(grad_x),
        clipped,
        coded,
    )
    return grad_x, torch.from_numpy(clipped).sum(1), torch.from_numpy(coded).sum(1)


def rescale(y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return y * scale + bias as float32; the scale has B elements or one, the bias C."""
    out = torch.empty_like(y, dtype=torch.float32)
    _run("rescale", _rows(y), _each_channel(scale, y), bias.detach().contiguous().numpy(), _rows(out))
    return out


def rescale_gradient(grad: Tensor, scale: Tensor, out_type: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return grad * scale as ``out_type``, and the sums (C,) of grad over samples and space."""
    batch, channels, rows, _ = grad.shape
    grad_y = torch.empty_like(grad, dtype=out_type)
    sums = np.zeros((batch, rows, channels), np.float32)
    _run("rescale_gradient", _rows(grad), _each_channel(scale, grad), _rows(grad_y), sums)
    return grad_y, torch.from_numpy(sums).sum((0, 1))


def _rows(x: Tensor) -> np.ndarray:
    """Return a view of (B,C,H,W) as (B,H,W*C), with bfloat16 as uint16."""
    x = x.detach()
    if x.dtype == torch.bfloat16:
        x = x.view(torch.uint16)
    return x.permute(0, 2, 3, 1).reshape(len(x), x.shape[2], -1).numpy()


def _each(value: Tensor | float, batch: int) -> np.ndarray:
    """Return a number, or a tensor of one or B numbers, as (B,) float32."""
    if not isinstance(value, Tensor):
        return np.full(batch, value, np.float32)
    return np.ascontiguousarray(np.broadcast_to(value.detach().flatten().numpy(), batch))


def _each_channel(scale: Tensor, y: Tensor) -> np.ndarray:
    """Return a scale that broadcasts to (B,C,1,1) as one float32 per sample and channel of ``y``."""
    batch, channels = y.shape[:2]
    return scale.detach().expand(batch, channels, 1, 1).contiguous().view(batch, channels).numpy()


def _run(name: str, *arguments: Any) -> None:
    import numba

    loops = _loops()
    assert loops is not None
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    loops[name](*arguments)


@cache
@none_if_numba_fails
def _loops() -> dict[str, Loop] | None:
    """Return the loops, which numba compiles for each type that they meet; None if numba fails."""
    import numba

    loops = _compiled(parallel=True)
    _try(loops)
    if numba.threading_layer() == "workqueue":  # it aborts the process if two threads enter it at once
        loops = _compiled(parallel=False)
    return loops


def _compiled(*, parallel: bool) -> dict[str, Loop]:
    from cabm.quant import loops

    names = ("encode", "encode_gradient", "mixture_gradient", "rescale", "rescale_gradient")
    # sums are vectorised only if the compiler may reorder them; it may change nothing else
    options = {"parallel": parallel, "fastmath": {"reassoc", "contract"}}
    return {name: jit(getattr(loops, name), cache=parallel, **options) for name in names}


def _try(loops: dict[str, Loop]) -> None:
    """Run one loop now, so that a failure does not surface amid a training step."""
    one = np.ones(1, np.float32)
    out = np.zeros((1, 1, 3), np.float32)
    loops["encode"](np.array([[[0.6, 5, -5]]], np.float32), one, one * 3, one * 2, out)
    if out.tolist() != [[[2, 6, -6]]]:
        raise ArithmeticError("compiled quantizer loops compute wrong codes")
