"""A float convolution to few channels, such as the colours of an image.

One matrix product gives, for every pixel, the products with all taps of the kernel; a result is the sum of
its neighbours' products. So taps fill the lanes of a register, where a direct sum has three colours.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from cabm.machine.compiled import Loop, jit


class TapConv:
    """A convolution with stride 1 and "same" padding.

    Args:
        weight: (O,I,k,k), k odd.
        bias: (O,).
        shuffle: r of the PixelShuffle that the input has yet to go through; its channels are in the order
            (r^2, I), as `cabm.engine.float_rows.pixels_together` makes them.
    """

    def __init__(self, weight: Tensor, bias: Tensor, shuffle: int) -> None:
        _, self._inputs, self._size, _ = weight.shape
        taps = weight.detach().permute(1, 2, 3, 0).reshape(self._inputs, -1)
        self._taps = taps.float().contiguous()
        self._bias = bias.detach().float().numpy()
        self._shuffle = shuffle

    def __call__(self, x: Tensor, first: int, last: int) -> Tensor:
        """Convolve (1,I r^2,h,w) float32, channels side by side in memory.

        Args:
            x: the input; beyond its rows and columns are zeros.
            first, last: rows of ``x`` whose results are wanted.

        Returns:
            (1,O,(last-first) r,w r) float32.
        """
        height, width, factor = *x.shape[2:], self._shuffle
        products = x.permute(0, 2, 3, 1).reshape(-1, self._inputs) @ self._taps
        products = products.view(height, width, factor, factor, self._size, self._size, len(self._bias))
        out = torch.empty((last - first) * factor, width * factor, len(self._bias))
        _loop()(products.numpy(), first * factor, self._bias, out.numpy())
        return out.permute(2, 0, 1)[None]


@cache
def _loop() -> Loop:
    return jit(add_taps)


def add_taps(products, first, bias, out):
    """Add the products of each result's neighbours.

    Args:
        products: (h, w, r, r, k, k, O) float32: of coarse pixels, their fine pixels, and taps.
        first: fine row where ``out`` starts.
        bias: (O,) float32.
        out: (rows, w r, O) float32.
    """
    height, width, factor, _, size, _, outputs = products.shape
    reach = size // 2
    for row in range(out.shape[0]):
        line = out[row]
        line[:] = bias
        for down in range(size):
            y = first + row + down - reach
            if y < 0 or y >= height * factor:
                continue
            source = products[y // factor, :, y % factor, :, down]
            for coarse in range(width):
                for fine in range(factor):
                    values, right = source[coarse, fine], coarse * factor + fine + reach
                    for across in range(max(0, right - len(line) + 1), min(size, right + 1)):
                        for c in range(outputs):
                            line[right - across, c] += values[across, c]
