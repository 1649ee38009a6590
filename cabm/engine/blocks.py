"""EDSR's residual blocks on bytes: all of them in one compiled call, or layer by layer.

The compiled call (`cabm.engine.vnni`) needs numba, AVX512-VNNI and groups of 64 channels. It is left alone
where the processor has AMX, whose units oneDNN knows to use. Both ways give the same codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine.grid import Grid, Storage
from cabm.engine.lower import Step
from cabm.engine.onednn import cpu_features
from cabm.engine.steps import add_decode, add_encode, dense, encode, flat, jit
from cabm.quant.layers import QuantConv2d

Kernel = Callable[..., None]


@dataclass(frozen=True)
class Block:
    """One residual block at given bits: conv, ReLU, conv, add.

    Attributes:
        conv1: the first convolution; its input is also what is added to.
        conv2: the second.
        residual: grid of what is added.
        res_scale: factor on it before.
    """

    conv1: Step
    conv2: Step
    residual: Grid
    res_scale: float

    def run(self, codes: Tensor) -> Tensor:
        """Return the residual's codes."""
        hidden = self.conv1.to_codes(codes, self.conv2.grid)
        if self.res_scale == 1:
            return self.conv2.to_codes(hidden, self.residual)
        return encode(self.conv2.to_float(hidden).mul_(self.res_scale), self.residual)


class Blocks:
    """Residual blocks that run one after another, layer by layer.

    Args:
        blocks: at least one.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = list(blocks)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the last block's sum (1,C,h,w), float32, for the first block's input, float32."""
        skip = encode(x, self.blocks[0].conv1.grid)
        for block, following in pairwise(self.blocks):
            residual = block.run(skip)
            grid, out = block.conv1.grid, following.conv1.grid
            skip = add_encode(residual, block.residual.scale, skip, grid, out)
        last = self.blocks[-1]
        return add_decode(last.run(skip), last.residual.scale, skip, last.conv1.grid)


class FusedBlocks:
    """Residual blocks that run one after another in one compiled call.

    Args:
        kernel: by `compiled`.
        blocks: at least one, whose convolutions have `FusedWeights`.
    """

    def __init__(self, kernel: Kernel, blocks: Sequence[Block]) -> None:
        self._kernel = kernel
        self._first = blocks[0].conv1.grid
        steps = [step for block in blocks for step in (block.conv1, block.conv2)]
        self._weights = [step.conv.packed for step in steps]  # addresses alone do not keep them
        channels = len(steps[0].conv.starts)
        self._layers = (
            np.array([packed.data_ptr() for packed in self._weights], dtype=np.uintp),
            np.stack([step.conv.starts for step in steps]),
            np.stack([_per_channel(step.scaling.factors, channels) for step in steps]),
            np.stack([_per_channel(step.scaling.bias, channels) for step in steps]),
            _numbers(blocks),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return the last block's sum (1,C,h,w), float32, for the first block's input, float32."""
        codes = encode(x, self._first)
        out = torch.empty_like(codes, dtype=torch.float32)
        self._kernel(flat(codes), *codes.shape[2:], *self._layers, flat(out))
        return out


class FusedWeights:
    """Weights of a 3x3 convolution as `FusedBlocks` read them.

    Args:
        codes: (O,I,3,3) whole numbers in -127..127, of any type.
        shifted: whether it reads codes whose zero is not byte 0.
        geometry: of the convolution, which is not needed: see `fused_kernel`.

    Attributes:
        packed: int8, in the order of `cabm.engine.vnni`.
        starts: (O,) int32 that sums start from, against the shift.
    """

    def __init__(self, codes: Tensor, *, shifted: bool, **geometry: object) -> None:
        from cabm.engine import vnni

        outputs, inputs, height, width = codes.shape
        groups = codes.detach().view(outputs // vnni.GROUP, vnni.GROUP, inputs // 4, 4, height, width)
        self.packed = groups.permute(0, 4, 5, 2, 1, 3).to(torch.int8).contiguous()
        shift = Storage.SHIFTED.value[1] if shifted else 0
        self.starts = (-shift * codes.detach().sum(dim=(1, 2, 3))).to(torch.int32).numpy()


def fused_kernel(convs: Sequence[QuantConv2d]) -> Kernel | None:
    """Return the compiled call for residual blocks of these convolutions, None where there is none."""
    kernel = compiled()
    return kernel if kernel is not None and all(_fuses(conv) for conv in convs) else None


@cache
def compiled() -> Kernel | None:
    """Return the compiled call, or None where it cannot run, or oneDNN is faster; compiles at the first."""
    features = cpu_features()
    if not features.get("avx512_vnni") or features.get("amx_int8"):
        return None
    try:
        import numba
        from llvmlite import binding

        # LLVM ends the process where it is asked for what its target lacks
        fixed = {numba.config.CPU_NAME, numba.config.CPU_FEATURES} - {None, "", "host"}
        if fixed or not binding.get_host_cpu_features().get("avx512vnni"):
            return None
        from cabm.engine import vnni

        kernel = jit(numba, vnni.residual_blocks)
        return kernel if _tried(kernel) else None
    except Exception:  # as in `cabm.engine.steps`
        return None


def _fuses(conv: QuantConv2d) -> bool:
    from cabm.engine import vnni

    plain = conv.stride == conv.padding == conv.dilation == (1, 1) and conv.groups == 1
    square = conv.in_channels == conv.out_channels and conv.out_channels % vnni.GROUP == 0
    return plain and square and conv.kernel_size == (3, 3)


def _tried(kernel: Kernel) -> bool:
    """Try the call on sums of both ends, with factors that are powers of two: all is exact."""
    from cabm.engine import vnni

    height, width, channels = 2, vnni.PIXELS + 1, vnni.GROUP
    generator = torch.Generator().manual_seed(0)
    convs = torch.randint(-127, 128, (2, channels, channels, 3, 3), generator=generator)
    convs[:, 0], convs[:, 1] = 127, -127
    codes = torch.randint(1, 256, (1, channels, height, width), generator=generator)
    codes[..., :3] = 255
    weights = [FusedWeights(conv, shifted=index == 0) for index, conv in enumerate(convs)]
    factor, bias, step = 2.0**-14, 2.0**-3, 2.0**-4
    numbers = np.array([[1, 1, 0, 255, 0, 0, 0, 0], [1, 1, -127, 127, step, step, 0, 0]], dtype=np.float32)
    out = torch.empty(height * width * channels)
    kernel(
        flat(dense(codes.to(torch.uint8))),
        *(height, width),
        np.array([each.packed.data_ptr() for each in weights], dtype=np.uintp),
        np.stack([each.starts for each in weights]),
        *(np.full((2, channels), value, dtype=np.float32) for value in (factor, bias)),
        numbers,
        out.numpy(),
    )
    skip = codes.double() - Storage.SHIFTED.value[1]
    hidden = (F.conv2d(skip, convs[0].double(), padding=1) * factor + bias).round().clamp(0, 255)
    residual = (F.conv2d(hidden, convs[1].double(), padding=1) * factor + bias).round().clamp(-127, 127)
    return bool(torch.equal(out.double(), ((residual + skip) * step).permute(0, 2, 3, 1).flatten()))


def _numbers(blocks: Sequence[Block]) -> np.ndarray:
    """Return the numbers of each convolution, (2B,8) float32, as `cabm.engine.vnni` wants them."""
    rows = []
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        hidden, residual, skip = block.conv2.grid, block.residual, block.conv1.grid
        after = (0, 0) if following is None else (following.conv1.grid.inverse, following.conv1.grid.levels)
        rows.append((1, hidden.inverse, hidden.low, hidden.levels, 0, 0, 0, 0))
        rows.append((block.res_scale, residual.inverse, residual.low, residual.levels))
        rows[-1] += (residual.scale, skip.scale, *after)
    return np.array(rows, dtype=np.float32)


def _per_channel(values: Tensor | None, channels: int) -> np.ndarray:
    """Return one float32 number for each channel."""
    given = torch.zeros(1) if values is None else values.detach()
    return given.expand(channels).contiguous().numpy()
