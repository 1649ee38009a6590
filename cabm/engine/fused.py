"""The compiled call that runs many layers of a tile, in the form that this CPU runs fastest.

`cabm.engine.chains` describes the layers. Where arithmetic is integer, codes equal those of the same layers
run one by one by oneDNN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.engine.forms import MANY, Form, choose_form
from cabm.engine.grid import Storage
from cabm.engine.layer_numbers import FLOATING
from cabm.machine.compiled import Loop, compiles_for_this_cpu, jit, none_if_numba_fails
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
        codes: Tensor,
        *,
        shifted: bool,
        groups: int = 1,
        **geometry: object,
    ) -> CompiledWeights:
        """Pack weights; called by `cabm.engine.packing.PackedConv`.

        Args:
            codes: (O,I/groups,3,3) whole numbers in -127..127, of any type.
            shifted: whether the input's code 0 is byte 128.
            groups: as in `torch.nn.Conv2d`; the products of different groups are with zeros.
            geometry: ignored; `kernel_for` accepts one geometry only.
        """
        codes = _without_groups(codes.detach(), groups)
        outputs, inputs = codes.shape[:2]
        margins = [(0, self.padded(count) - count) for count in (inputs, outputs)]
        codes = F.pad(codes, (0, 0, 0, 0, *margins[0], *margins[1]))
        zero = (Storage.SHIFTED if shifted else Storage.POSITIVE).value[1]
        starts = ((self.form.offset - zero) * codes.sum(dim=(1, 2, 3))).to(torch.int32).numpy()
        return CompiledWeights(self.form.pack(codes), starts, codes.shape[1], outputs)

    @property
    def compact(self) -> bool:
        """Whether images of floats can be of 16-bit numbers."""
        return self.form.compact != FLOATING

    def padded_floats(self, channels: int, *, compact: bool = False) -> int:
        """Return the number of channels of an image of floats that holds ``channels``."""
        granule = self.form.compact_granule if compact else self.form.granule
        return -(-channels // granule) * granule

    def pack_floats(self, conv: nn.Conv2d, parts: Sequence[int], *, compact: bool = False) -> FloatWeights:
        """Pack a 1x1 convolution whose input is an image of ``parts`` channels, each padded.

        Args:
            conv: the convolution.
            parts: channels of the parts.
            compact: whether the image is of the form's 16-bit numbers.
        """
        weight = conv.weight.detach()[:, :, 0, 0]
        outputs = self.padded(len(weight)) - len(weight)
        columns = [
            F.pad(part, (0, self.padded_floats(part.shape[1], compact=compact) - part.shape[1]))
            for part in weight.split(parts, 1)
        ]
        weight = F.pad(torch.cat(columns, dim=1), (0, 0, 0, outputs))
        biases = F.pad(conv.bias.detach(), (0, outputs)).float().contiguous()
        if compact:
            packed, scales = self.form.pack_compact(weight)
            return FloatWeights(packed, biases, weight.shape[1], scales)
        return FloatWeights(self.form.pack_floats(weight), biases, weight.shape[1])


@dataclass(frozen=True)
class FloatWeights:
    """Weights of a 1x1 convolution of floats.

    Attributes:
        packed: in the order of the form.
        biases: (O,); O is padded.
        inputs: padded number of input channels.
        scales: (O,) float32 of weights in fixed point.
    """

    packed: Tensor
    biases: Tensor
    inputs: int
    scales: Tensor | None = None


@dataclass(frozen=True)
class CompiledWeights:
    """Weights of a 3x3 convolution, packed for a form.

    Attributes:
        packed: in the order of the form.
        starts: (O,) int32 added to the sums, which cancel the shift of the input; O is padded.
        inputs: padded number of input channels.
        channels: number of output channels without padding.
    """

    packed: Tensor
    starts: np.ndarray
    inputs: int
    channels: int


def kernel_for(model: nn.Module) -> Kernel | None:
    """Return the compiled call if it can run all quantized convolutions of a model, else None."""
    convs = [module for module in model.modules() if isinstance(module, QuantConv2d)]
    kernel = compiled(wide=all(min(conv.in_channels, conv.out_channels) >= MANY for conv in convs))
    return kernel if kernel is not None and all(_fuses(conv, kernel.form) for conv in convs) else None


def packing(kernel: Kernel | None) -> dict[str, Any]:
    """Return how `cabm.engine.packing.PackedConv` packs weights for a compiled call, or for oneDNN."""
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


def _without_groups(codes: Tensor, groups: int) -> Tensor:
    """Return weights (O,I,k,k) without groups for weights (O,I/groups,k,k)."""
    outputs, inputs = codes.shape[:2]
    whole = codes.new_zeros(groups, outputs // groups, groups, inputs, *codes.shape[2:])
    group = torch.arange(groups)
    whole[group, :, group] = codes.view(groups, outputs // groups, inputs, *codes.shape[2:])
    return whole.view(outputs, groups * inputs, *codes.shape[2:])
