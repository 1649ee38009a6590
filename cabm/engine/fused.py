"""The compiled call that runs many layers of a tile, in the form that this CPU runs fastest.

`cabm.engine.chains` describes the layers. Where arithmetic is integer, codes equal those of the same layers
run one by one by oneDNN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from cabm.engine.arrays import aligned, with_margin
from cabm.engine.forms import MANY, Form, choose_form
from cabm.engine.grid import Storage
from cabm.engine.layer_numbers import FLOATING
from cabm.machine.compiled import Loop, compiles_for_this_cpu, jit, none_if_numba_fails

if TYPE_CHECKING:
    from torch import nn

    from cabm.quant.layers import QuantConv2d


@dataclass(frozen=True)
class Kernel:
    """A compiled form.

    Attributes:
        form: how it convolves.
        run: the compiled function of `cabm.engine.steps.step_loop`.
    """

    form: Form
    run: Loop

    def padded(self, channels: int) -> int:
        """Return the number of channels of an image that holds ``channels``."""
        return -(-channels // self.form.granule) * self.form.granule

    def pack(
        self,
        codes: np.ndarray,
        *,
        shifted: bool,
        groups: int = 1,
        **geometry: object,
    ) -> CompiledWeights:
        """Pack weights; called by `cabm.engine.modules.pack_conv`.

        Args:
            codes: (O,I/groups,3,3) whole numbers in -127..127, of any type.
            shifted: whether the input's code 0 is byte 128.
            groups: as in `torch.nn.Conv2d`; the products of different groups are with zeros.
            geometry: ignored; `kernel_for` accepts one geometry only.
        """
        codes = _without_groups(codes.astype(np.int8), groups)
        outputs = len(codes)
        codes = with_margin(codes, *(self.padded(count) - count for count in codes.shape[:2]))
        zero = (Storage.SHIFTED if shifted else Storage.POSITIVE).value[1]
        starts = np.int32(self.form.offset - zero) * codes.sum(axis=(1, 2, 3), dtype=np.int32)
        return CompiledWeights(aligned(self.form.pack(codes)), starts, codes.shape[1], outputs)

    @property
    def compact(self) -> bool:
        """Whether images of floats can be of 16-bit numbers."""
        return self.form.compact != FLOATING

    def padded_floats(self, channels: int, *, compact: bool = False) -> int:
        """Return the number of channels of an image of floats that holds ``channels``."""
        granule = self.form.compact_granule if compact else self.form.granule
        return -(-channels // granule) * granule

    def pack_floats(
        self, weight: np.ndarray, bias: np.ndarray, parts: Sequence[int], *, compact: bool = False
    ) -> FloatWeights:
        """Pack a 1x1 convolution whose input is an image of ``parts`` channels, each padded.

        Args:
            weight, bias: (O,I) and (O,) float32.
            parts: channels of the parts.
            compact: whether the image is of the form's 16-bit numbers.
        """
        outputs = self.padded(len(weight)) - len(weight)
        columns = [
            with_margin(part, outputs, self.padded_floats(part.shape[1], compact=compact) - part.shape[1])
            for part in np.split(weight, np.cumsum(parts)[:-1], axis=1)
        ]
        weight, biases = np.concatenate(columns, axis=1), with_margin(bias, outputs)
        if compact:
            packed, scales = self.form.pack_compact(weight)
            return FloatWeights(aligned(packed), biases, weight.shape[1], scales)
        return FloatWeights(aligned(self.form.pack_floats(weight)), biases, weight.shape[1])


@dataclass(frozen=True)
class FloatWeights:
    """Weights of a 1x1 convolution of floats; arrays are contiguous.

    Attributes:
        packed: in the order of the form; fastest where it starts with a cache line.
        biases: (O,) float32; O is padded.
        inputs: padded number of input channels.
        scales: (O,) float32 of weights in fixed point.
    """

    packed: np.ndarray
    biases: np.ndarray
    inputs: int
    scales: np.ndarray | None = None


@dataclass(frozen=True)
class CompiledWeights:
    """Weights of a 3x3 convolution, packed for a form; arrays are contiguous.

    Attributes:
        packed: in the order of the form; fastest where it starts with a cache line.
        starts: (O,) int32 added to the sums, which cancel the shift of the input; O is padded.
        inputs: padded number of input channels.
        channels: number of output channels without padding.
    """

    packed: np.ndarray
    starts: np.ndarray
    inputs: int
    channels: int


def kernel_for(model: nn.Module) -> Kernel | None:
    """Return the compiled call if it can run all quantized convolutions of a model, else None."""
    from cabm.quant.layers import QuantConv2d

    convs = [module for module in model.modules() if isinstance(module, QuantConv2d)]
    kernel = compiled(wide=all(min(conv.in_channels, conv.out_channels) >= MANY for conv in convs))
    return kernel if kernel is not None and all(_fuses(conv, kernel.form) for conv in convs) else None


def packing(kernel: Kernel | None) -> dict[str, Any]:
    """Return how `cabm.engine.modules.pack_conv` packs weights for a compiled call, or for oneDNN."""
    return {} if kernel is None else {"pack": kernel.pack}


@cache
@none_if_numba_fails
def compiled(*, wide: bool = False) -> Kernel | None:
    """Return the compiled call, or None if no form runs here.

    The first call compiles, or loads the code that an earlier process compiled.

    Args:
        wide: see `cabm.engine.forms.choose_form`.
    """
    form = choose_form(wide=wide)
    if form is None or not compiles_for_this_cpu():
        return None
    if wide and form.name == choose_form().name:
        return compiled()  # most CPUs have one form for all models
    return compile_form(form)


def compile_form(form: Form) -> Kernel:
    """Compile a form and try it.

    Raises:
        ArithmeticError: it computes wrong results.
    """
    from cabm.engine.trial import tried

    kernel = Kernel(form, jit(form.loop()))
    if not tried(kernel):
        raise ArithmeticError("compiled layers compute wrong results")
    return kernel


def _fuses(conv: QuantConv2d, form: Form) -> bool:
    plain = conv.stride == conv.padding == conv.dilation == (1, 1) and conv.kernel_size == (3, 3)
    return plain and conv.in_channels // conv.groups <= form.most_channels


def _without_groups(codes: np.ndarray, groups: int) -> np.ndarray:
    """Return weights (O,I,k,k) without groups for weights (O,I/groups,k,k)."""
    outputs, inputs = codes.shape[:2]
    whole = np.zeros((groups, outputs // groups, groups, inputs, *codes.shape[2:]), codes.dtype)
    group = np.arange(groups)
    whole[group, :, group] = codes.reshape(groups, outputs // groups, inputs, *codes.shape[2:])
    return whole.reshape(outputs, groups * inputs, *codes.shape[2:])
