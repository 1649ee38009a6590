"""Float convolutions around the quantized ones, in float32 or bfloat16."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine.elementwise import dense
from cabm.engine.onednn import pointwise_float_conv
from cabm.machine.compiled import none_if_numba_fails

if TYPE_CHECKING:
    from cabm.engine.float_winograd import Compiled

FEWEST = {3: (8, 8), 5: (8, 32)}
"""By side of the kernel, the fewest input and output channels for which Winograd is faster."""


@cache
@none_if_numba_fails
def winograd() -> Compiled | None:
    """Return the compiled loop of Winograd convolutions, or None; the first call compiles."""
    from cabm.engine.float_winograd import compile_loop

    return compile_loop()


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
        loop = winograd() if suits and dtype == torch.float32 else None
        self._fast = None
        if loop is not None:
            from cabm.engine.float_winograd import WinogradConv

            self._fast = WinogradConv(loop, weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve (N,I,h,w); the result has the convolution's type."""
        if self._fast is not None and len(x) == 1:
            return self._fast(x)
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
