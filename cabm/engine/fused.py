"""EDSR's residual blocks in one compiled call.

The call has the form that this CPU runs fastest (`cabm.engine.forms`). The codes equal those
of the blocks run layer by layer (`cabm.engine.blocks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine.blocks import Block
from cabm.engine.elementwise import dense, encode, flat
from cabm.engine.forms import Form, choose_form
from cabm.engine.grid import Storage
from cabm.engine.layer_numbers import (
    NARROW_POSITIVE,
    NARROW_SIGNED,
    NEXT_READ,
    NEXT_SKIP,
    NUMBERS,
    WIDE,
)
from cabm.machine.compiled import Loop, compiles_for_this_cpu, jit, none_if_numba_fails
from cabm.quant.layers import QuantConv2d


@dataclass(frozen=True)
class Kernel:
    """A compiled form.

    Attributes:
        form: how it convolves.
        run: the compiled `cabm.engine.block_loops.residual_blocks`.
    """

    form: Form
    run: Loop

    def pack(
        self, codes: Tensor, *, shifted: bool, narrow: bool = False, **geometry: object
    ) -> FusedWeights:
        """Pack weights; called by `cabm.engine.packing.PackedConv`.

        Args:
            codes: (O,I,3,3) whole numbers in -127..127, of any type.
            shifted: whether the input's code 0 is byte 128.
            narrow: whether inputs and weights have at most the form's ``narrow_bits``.
            geometry: ignored; `fused_kernel` accepts one geometry only.
        """
        codes = codes.detach()
        products = (NARROW_SIGNED if shifted else NARROW_POSITIVE) if narrow else WIDE
        shift = self.form.unit * Storage.SHIFTED.value[1] if shifted and not narrow else 0
        starts = (-shift * codes.sum(dim=(1, 2, 3))).to(torch.int32).numpy()
        return FusedWeights(self.form.pack(codes, products), starts, self.form.unit, products)


@dataclass(frozen=True)
class FusedWeights:
    """Weights of a 3x3 convolution, packed for `FusedBlocks`.

    Attributes:
        packed: in the order of the form.
        starts: (O,) int32 added to the sums, which cancel the shift of the input.
        unit: the sums are this many times the convolution.
        products: how the form multiplies them; see `cabm.engine.layer_numbers.WIDE`.
    """

    packed: Tensor
    starts: np.ndarray
    unit: int
    products: int

    @property
    def address(self) -> int:
        """Address of the weights, valid as long as this object."""
        return self.packed.data_ptr()


class FusedBlocks:
    """Consecutive residual blocks run in one compiled call.

    Args:
        kernel: from `compiled`.
        blocks: at least one; their convolutions have `FusedWeights` that this kernel packed.
    """

    def __init__(self, kernel: Kernel, blocks: Sequence[Block]) -> None:
        self._run = kernel.run
        self._first = blocks[0].conv1.grid, blocks[0].skip
        self._blocks = list(blocks)  # keeps the weights alive; the kernel is given their addresses
        *layers, numbers = (np.concatenate(each) for each in zip(*(b.layers for b in blocks), strict=True))
        for block, row in zip(blocks[1:], numbers[1::2], strict=False):
            for place, grid in ((NEXT_READ, block.conv1.grid), (NEXT_SKIP, block.skip)):
                row[place : place + 2] = grid.inverse, grid.levels
        self._layers = (*layers, numbers)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the blocks on (1,C,h,w) float32; the result has the same shape and type."""
        read, skip = (encode(x, grid) for grid in self._first)
        out = torch.empty_like(read, dtype=torch.float32)
        self._run(flat(read), flat(skip), *read.shape[2:], *self._layers, flat(out))
        return out


def fused_kernel(convs: Sequence[QuantConv2d]) -> Kernel | None:
    """Return the compiled call if it can run residual blocks of these convolutions, else None."""
    kernel = compiled()
    return kernel if kernel is not None and all(_fuses(conv, kernel.form) for conv in convs) else None


@cache
@none_if_numba_fails
def compiled() -> Kernel | None:
    """Return the compiled call, or None if no form runs here or oneDNN is faster (AMX).

    The first call compiles, or loads the code that an earlier process compiled.
    """
    form = choose_form()
    return None if form is None or not compiles_for_this_cpu() else compile_form(form)


def compile_form(form: Form) -> Kernel:
    """Compile a form and try it.

    Raises:
        ArithmeticError: it computes wrong results.
    """
    kernel = Kernel(form, jit(form.loop()))
    if not _tried(kernel):
        raise ArithmeticError("compiled residual blocks compute wrong results")
    return kernel


def _fuses(conv: QuantConv2d, form: Form) -> bool:
    plain = conv.stride == conv.padding == conv.dilation == (1, 1) and conv.groups == 1
    square = conv.in_channels == conv.out_channels <= form.most_channels
    return plain and square and conv.out_channels % form.group == 0 and conv.kernel_size == (3, 3)


def _tried(kernel: Kernel) -> bool:
    """Run the call on extreme sums and compare; factors are powers of two, so all results are exact."""
    height, width, channels = 3, 7, kernel.form.group
    generator = torch.Generator().manual_seed(0)
    convs = torch.randint(-127, 128, (2, channels, channels, 3, 3), generator=generator)
    convs[:, 0], convs[:, 1] = 127, -127
    codes = torch.randint(1, 256, (1, channels, height, width), generator=generator)
    codes[..., :3] = 255
    weights = [kernel.pack(conv, shifted=index == 0) for index, conv in enumerate(convs)]
    factor, bias, step = 2.0**-14, 2.0**-3, 2.0**-4
    numbers = np.zeros((2, NUMBERS), dtype=np.float32)
    numbers[:, :NEXT_READ] = [1, 1, 0, 255, 0, 0], [1, 1, -127, 127, step, step]
    out = torch.empty(height * width * channels)
    kernel.run(
        *[flat(dense(codes.to(torch.uint8)))] * 2,
        *(height, width),
        np.array([each.address for each in weights], dtype=np.uintp),
        np.stack([each.starts for each in weights]),
        *(np.full((2, channels), value, dtype=np.float32) for value in (factor / kernel.form.unit, bias)),
        numbers,
        out.numpy(),
    )
    skip = codes.double() - Storage.SHIFTED.value[1]
    hidden = (F.conv2d(skip, convs[0].double(), padding=1) * factor + bias).round().clamp(0, 255)
    residual = (F.conv2d(hidden, convs[1].double(), padding=1) * factor + bias).round().clamp(-127, 127)
    return bool(torch.equal(out.double(), ((residual + skip) * step).permute(0, 2, 3, 1).flatten()))
