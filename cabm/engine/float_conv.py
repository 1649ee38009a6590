"""Float convolutions around the quantized ones, in float32 or bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine.elementwise import dense
from cabm.engine.float_winograd import pack_winograd
from cabm.engine.modules import array
from cabm.engine.onednn import pointwise_float_conv
from cabm.engine.tensors import as_array, as_tensor

FEWEST = {3: (8, 8), 5: (8, 32)}
"""By side of the kernel, the fewest input and output channels for which Winograd is faster."""


class FloatConv:
    """A convolution with stride 1 and "same" padding, by Winograd where that is compiled and faster.

    Args:
        weight: (O,I,k,k), k odd.
        bias: (O,) or None.
        dtype: type to compute in, float32 or bfloat16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._weight = dense(weight.detach().to(dtype))
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._padding = weight.shape[-1] // 2
        outputs, inputs, size, _ = weight.shape
        fewest = FEWEST.get(size)
        suits = fewest is not None and inputs >= fewest[0] and outputs >= fewest[1]
        fast = suits and dtype == torch.float32
        self._fast = pack_winograd(array(weight), None if bias is None else array(bias)) if fast else None

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve (N,I,h,w); the result has the convolution's type."""
        if self._fast is not None and len(x) == 1:
            return as_tensor(self._fast(as_array(x)))
        x = dense(x.to(self._weight.dtype))
        if self._padding == 0 and x.dtype == torch.float32:
            return dense(pointwise_float_conv(x, self._weight, self._bias))
        return dense(F.conv2d(x, self._weight, self._bias, padding=self._padding))


def minus_image(weight: Tensor, phases: int) -> Tensor:
    """Let a convolution read three more channels, an image, and subtract each from its colour's outputs.

    A tail that computes in bfloat16 rounds to 8 bits of mantissa. What it computes this way is a small
    difference, to which the image is added again in float32.

    Args:
        weight: (3*phases,I,k,k), the outputs of one colour side by side.
        phases: outputs per colour.

    Returns:
        (3*phases,I+3,k,k).
    """
    outputs, inputs, size, _ = weight.shape
    wider = F.pad(weight, (0, 0, 0, 0, 0, 3))
    output = torch.arange(outputs)
    wider[output, inputs + output // phases, size // 2, size // 2] = -1
    return wider
