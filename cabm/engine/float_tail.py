"""Float convolutions one after another in float32, for processors without fast products of bytes.

Most run by Winograd (`cabm.engine.float_winograd`), which shuffles and activates on the way. A last one
that makes the colours on the finest grid, or has a larger kernel, runs by sums of taps
(`cabm.engine.tap_sums`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cabm.engine.arrays import empty
from cabm.engine.float_rows import Layer, pixels_together
from cabm.engine.float_winograd import WinogradConv, pack_winograd
from cabm.engine.tap_sums import TapConv, pack_taps

BAND_BYTES = 2**22
"""Of a band. malloc does not keep blocks of 32 MB and more, and mapping them anew for every tile takes as
long as computing them."""

FEWEST = 8
"""Inputs of a convolution; fewer fill no register."""

SIDES = (3, 5)
"""Of kernels for which there is Winograd."""


@dataclass(frozen=True, eq=False)
class FloatTail:
    """Convolutions one after another; called like `cabm.engine.float_rows.Rows`.

    Attributes:
        convs: all but the last.
        last: the last one.
        shuffle: r of the PixelShuffle after it; its outputs are in the order (r^2, C), see
            `cabm.engine.float_rows.pixels_together`.
    """

    convs: tuple[WinogradConv, ...]
    last: WinogradConv | TapConv
    shuffle: int

    def __call__(
        self, x: np.ndarray, *, addend: np.ndarray | None = None, base: np.ndarray | None = None
    ) -> np.ndarray:
        """Convolve (h,w,I) float32; see there."""
        convs = list(self.convs)
        if addend is not None:
            x = convs.pop(0)(x)
            x += addend
        wide = convs.pop() if convs and isinstance(self.last, TapConv) else None
        for conv in convs:
            x = conv(x)
        result = self._shuffled(self.last(x) if wide is None else self._in_bands(x, wide, self.last))
        if base is not None:
            result += base
        return result

    def _in_bands(self, x: np.ndarray, wide: WinogradConv, last: TapConv) -> np.ndarray:
        """Return the results of two convolutions, which run in bands of rows."""
        height, width = x.shape[0] * wide.shuffle, x.shape[1] * wide.shuffle
        factor = last.shuffle
        reach = -(-(last.size // 2) // factor)
        band = wide.size * max(BAND_BYTES // wide.memory_for(x, 1)[0].nbytes // wide.size, reach, 1)
        # the last rows of the band before, which the last convolution reads again, and a band
        memory = wide.memory_for(x, 2 * reach + band)
        out = empty((height * factor, width * factor, len(last.biases)))
        begin = ready = 0
        while begin < height:
            end, above = min(begin + band, height), min(begin, 2 * reach)
            memory[2 * reach - above : 2 * reach] = memory[band + 2 * reach - above : band + 2 * reach]
            wide(x, begin, end, out=memory[2 * reach :])
            rows = memory[2 * reach - above : 2 * reach + end - begin, :width, : wide.outputs]
            stop = end - (reach if end < height else 0)
            offset = begin - above
            last(rows, ready - offset, stop - offset, out=out[ready * factor : stop * factor])
            begin, ready = end, stop
        return out

    def _shuffled(self, x: np.ndarray) -> np.ndarray:
        """Return the result of PixelShuffle, contiguous."""
        height, width, channels = x.shape
        factor = self.shuffle
        cells = x.reshape(height, width, factor, factor, channels // factor**2)
        return np.ascontiguousarray(cells.swapaxes(1, 2)).reshape(height * factor, width * factor, -1)


def pack_tail(layers: Sequence[Layer]) -> FloatTail | None:
    """Return convolutions in float32; None where this CPU or their shapes rule that out.

    Args:
        layers: first to last.
    """
    if any(layer.weight.shape[1] < FEWEST for layer in layers):
        return None
    shuffles = [1, *(layer.shuffle for layer in layers)]
    *convs, last = (
        _pack(layer, shuffle, last=layer is layers[-1])
        for layer, shuffle in zip(layers, shuffles[:-1], strict=True)
    )
    if last is None or not all(isinstance(conv, WinogradConv) for conv in convs):
        return None
    return FloatTail(tuple(convs), last, layers[-1].shuffle)


def _pack(layer: Layer, shuffle: int, *, last: bool) -> WinogradConv | TapConv | None:
    """Return a convolution whose input has yet to go through PixelShuffle(shuffle), or None."""
    weight, bias = (pixels_together(each, layer.shuffle) for each in (layer.weight, layer.bias))
    sums = last and layer.slope == 1 and not layer.replicate
    if sums and (layer.shuffle < shuffle or weight.shape[-1] not in SIDES):
        return pack_taps(weight, bias, shuffle=shuffle)
    if weight.shape[-1] not in SIDES:
        return None
    return pack_winograd(weight, bias, shuffle=shuffle, slope=layer.slope, replicate=layer.replicate)
