"""EDSR's residual blocks on bytes: all blocks in one compiled call (fused), or layer by layer.

The compiled call (`cabm.engine.vnni`) needs AVX512-VNNI and a multiple of 64 channels, or AVX-VNNI and a
multiple of 32. On processors with AMX the layers run one by one: oneDNN uses AMX, which is faster. Both
ways give the same codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine.elementwise import add_decode, add_encode, dense, encode, flat
from cabm.engine.grid import Grid, Storage
from cabm.engine.packing import BoundConv
from cabm.machine.compiled import Loop, compiles_for_this_cpu, jit, none_if_numba_fails
from cabm.machine.cpu import integer_units, vnni_lanes
from cabm.quant.layers import QuantConv2d


@dataclass(frozen=True)
class Block:
    """One residual block at given bits: conv, ReLU, conv, add.

    Attributes:
        conv1: the first convolution.
        conv2: the second convolution.
        residual: grid of the residual, which is added to the skip connection.
        skip: grid of the skip connection; that of the first convolution's input, or one of its own.
        res_scale: factor on the residual before it is encoded.
    """

    conv1: BoundConv
    conv2: BoundConv
    residual: Grid
    skip: Grid
    res_scale: float

    def run(self, codes: Tensor) -> Tensor:
        """Return the codes of the residual (1,C,h,w) for the codes of the block's input."""
        hidden = self.conv1.to_codes(codes, self.conv2.grid)
        if self.res_scale == 1:
            return self.conv2.to_codes(hidden, self.residual)
        return encode(self.conv2.to_float(hidden).mul_(self.res_scale), self.residual)

    @cached_property
    def layers(self) -> tuple[np.ndarray, ...]:
        """The compiled call's weights, starts, factors, biases and numbers of the two convolutions.

        The numbers NEXT_READ and NEXT_SKIP depend on the following block and are left 0.
        """
        convs = (self.conv1, self.conv2)
        starts = np.stack([each.conv.starts for each in convs])
        factors, biases = np.empty((2, *starts.shape), dtype=np.float32)
        for row, each in enumerate(convs):
            factors[row], biases[row] = each.scaling.arrays
        hidden, residual = self.conv2.grid, self.residual
        first = (1, hidden.inverse, hidden.low, hidden.levels, 0, 0, 0, 0, 0, 0)
        second = (self.res_scale, residual.inverse, residual.low, residual.levels)
        second += (residual.scale, self.skip.scale, 0, 0, 0, 0)
        numbers = np.array([first, second], dtype=np.float32)
        return np.array([each.conv.address for each in convs], np.uintp), starts, factors, biases, numbers


class Blocks:
    """Consecutive residual blocks, at least one, run layer by layer."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = list(blocks)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the blocks on (1,C,h,w) float32; the result has the same shape and type."""
        first, last = self.blocks[0], self.blocks[-1]
        read, skip = encode(x, first.conv1.grid), encode(x, first.skip)
        for block, following in pairwise(self.blocks):
            total = partial(add_encode, block.run(read), block.residual.scale, skip, block.skip)
            read, skip = total(following.conv1.grid), total(following.skip)
        return add_decode(last.run(read), last.residual.scale, skip, last.skip)


class FusedBlocks:
    """Consecutive residual blocks run in one compiled call.

    Args:
        kernel: from `compiled`.
        blocks: at least one; their convolutions have `FusedWeights`.
    """

    def __init__(self, kernel: Loop, blocks: Sequence[Block]) -> None:
        from cabm.engine import vnni_ir

        self._kernel = kernel
        self._first = blocks[0].conv1.grid, blocks[0].skip
        self._blocks = list(blocks)  # keeps the weights alive; the kernel is given their addresses
        *layers, numbers = (np.concatenate(each) for each in zip(*(b.layers for b in blocks), strict=True))
        for block, row in zip(blocks[1:], numbers[1::2], strict=False):
            for place, grid in ((vnni_ir.NEXT_READ, block.conv1.grid), (vnni_ir.NEXT_SKIP, block.skip)):
                row[place : place + 2] = grid.inverse, grid.levels
        self._layers = (*layers, numbers)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the blocks on (1,C,h,w) float32; the result has the same shape and type."""
        read, skip = (encode(x, grid) for grid in self._first)
        out = torch.empty_like(read, dtype=torch.float32)
        self._kernel(flat(read), flat(skip), *read.shape[2:], *self._layers, flat(out))
        return out


class FusedWeights:
    """Weights of a 3x3 convolution, packed for `FusedBlocks`.

    Args:
        codes: (O,I,3,3) whole numbers in -127..127, of any type.
        shifted: whether the input's code 0 is byte 128.
        geometry: ignored; `fused_kernel` accepts one geometry only.

    Attributes:
        address: of the int8 weights in the order of `cabm.engine.vnni`, valid as long as this object.
        starts: (O,) int32 initial values of the sums, which cancel the shift of the input.
    """

    def __init__(self, codes: Tensor, *, shifted: bool, **geometry: object) -> None:
        from cabm.engine import vnni_ir

        outputs, inputs, height, width = codes.shape
        groups = codes.detach().view(outputs // vnni_ir.GROUP, vnni_ir.GROUP, inputs // 4, 4, height, width)
        self._packed = groups.permute(0, 4, 5, 2, 1, 3).to(torch.int8).contiguous()
        self.address = self._packed.data_ptr()
        shift = Storage.SHIFTED.value[1] if shifted else 0
        self.starts = (-shift * codes.detach().sum(dim=(1, 2, 3))).to(torch.int32).numpy()


def fused_kernel(convs: Sequence[QuantConv2d]) -> Loop | None:
    """Return the compiled call if it can run residual blocks of these convolutions, else None."""
    kernel = compiled()
    return kernel if kernel is not None and all(_fuses(conv) for conv in convs) else None


@cache
@none_if_numba_fails
def compiled() -> Loop | None:
    """Return the compiled call, or None if it cannot run here or oneDNN is faster (AMX).

    The first call compiles, or loads the code that an earlier process compiled.
    """
    units = integer_units()
    if not units or "amx_int8" in units or not vnni_lanes() or not compiles_for_this_cpu():
        return None
    from cabm.engine import vnni

    kernel = jit(vnni.residual_blocks())
    if not _tried(kernel):
        raise ArithmeticError("compiled residual blocks compute wrong results")
    return kernel


def _fuses(conv: QuantConv2d) -> bool:
    from cabm.engine import vnni_ir

    plain = conv.stride == conv.padding == conv.dilation == (1, 1) and conv.groups == 1
    square = conv.in_channels == conv.out_channels and conv.out_channels % vnni_ir.GROUP == 0
    return plain and square and conv.kernel_size == (3, 3)


def _tried(kernel: Loop) -> bool:
    """Run the call on extreme sums and compare; factors are powers of two, so all results are exact."""
    from cabm.engine import vnni_ir

    height, width, channels = 2, vnni_ir.PIXELS + 1, vnni_ir.GROUP
    generator = torch.Generator().manual_seed(0)
    convs = torch.randint(-127, 128, (2, channels, channels, 3, 3), generator=generator)
    convs[:, 0], convs[:, 1] = 127, -127
    codes = torch.randint(1, 256, (1, channels, height, width), generator=generator)
    codes[..., :3] = 255
    weights = [FusedWeights(conv, shifted=index == 0) for index, conv in enumerate(convs)]
    factor, bias, step = 2.0**-14, 2.0**-3, 2.0**-4
    numbers = np.zeros((2, vnni_ir.NUMBERS), dtype=np.float32)
    numbers[:, : vnni_ir.NEXT_READ] = [1, 1, 0, 255, 0, 0], [1, 1, -127, 127, step, step]
    out = torch.empty(height * width * channels)
    kernel(
        *[flat(dense(codes.to(torch.uint8)))] * 2,
        *(height, width),
        np.array([each.address for each in weights], dtype=np.uintp),
        np.stack([each.starts for each in weights]),
        *(np.full((2, channels), value, dtype=np.float32) for value in (factor, bias)),
        numbers,
        out.numpy(),
    )
    skip = codes.double() - Storage.SHIFTED.value[1]
    hidden = (F.conv2d(skip, convs[0].double(), padding=1) * factor + bias).round().clamp(0, 255)
    residual = (F.conv2d(hidden, convs[1].double(), padding=1) * factor + bias).round().clamp(-127, 127)
    return bool(torch.equal(out.double(), ((residual + skip) * step).permute(0, 2, 3, 1).flatten()))
