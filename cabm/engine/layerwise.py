"""The integer layers one by one, with oneDNN, where numba compiles no call that runs them all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine.blocks import Block
from cabm.engine.elementwise import add_decode, add_encode, encode
from cabm.engine.grid import Grid
from cabm.engine.packing import BoundConv
from cabm.engine.programs import Convolution
from cabm.engine.programs.carn import BoundBlock
from cabm.engine.programs.idn import BoundLayers, DistillationBlock
from cabm.engine.tensors import as_array, as_tensor


class OnTensors(Convolution):
    """Runs a convolution of tensors on images.

    Args:
        conv: called with (1,I,h,w).
        slope: factor on negative results.
    """

    def __init__(self, conv: torch.nn.Module, slope: float = 1.0) -> None:
        self._conv, self._slope = conv, slope

    @torch.inference_mode()
    def __call__(self, x: np.ndarray) -> np.ndarray:
        """See `Convolution`."""
        result = self.on_tensor(as_tensor(x))
        return as_array(result if self._slope == 1 else F.leaky_relu(result, self._slope, inplace=True))

    def on_tensor(self, x: Tensor) -> Tensor:
        """Convolve (1,I,h,w), without an activation."""
        return self._conv(x)


def to_codes(conv: BoundConv, x: Tensor, out: Grid) -> Tensor:
    """Convolve codes (N,I,H,W) and quantize to ``out``; two passes if ``out`` has no divisor."""
    if out.divisor is None:
        return encode(to_float(conv, x), out)
    return conv.conv.to_codes(x, conv.grid, conv.scaling, out)


def to_float(conv: BoundConv, x: Tensor) -> Tensor:
    """Convolve codes (N,I,H,W) to float32 values."""
    return conv.conv.to_float(x, conv.grid, conv.scaling)


class Blocks:
    """Consecutive residual blocks, at least one (EDSR, SRResNet)."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = list(blocks)

    @torch.inference_mode()
    def run(self, x: np.ndarray) -> np.ndarray:
        """Run the blocks on (h,w,C) float32; the result has the same shape and type."""
        first, last = self._blocks[0], self._blocks[-1]
        image = as_tensor(x)
        read, skip = encode(image, first.conv1.grid), encode(image, first.skip)
        for block, following in pairwise(self._blocks):
            total = partial(add_encode, _residual(block, read), _residual_step(block), skip, block.skip)
            read, skip = total(following.conv1.grid), total(following.skip)
        return as_array(add_decode(_residual(last, read), _residual_step(last), skip, last.skip))


def _residual(block: Block, codes: Tensor) -> Tensor:
    """Return the residual (1,C,h,w), as codes or float32, for the codes of the block's input."""
    if block.slope == 1:
        hidden = to_codes(block.conv1, codes, block.conv2.grid)
    else:
        hidden = encode(to_float(block.conv1, codes), block.conv2.grid, slope=block.slope)
    if block.residual is None:
        return to_float(block.conv2, hidden)
    if block.res_scale == 1:
        return to_codes(block.conv2, hidden, block.residual)
    return encode(to_float(block.conv2, hidden).mul_(block.res_scale), block.residual)


def _residual_step(block: Block) -> np.float32:
    """Return the step of `_residual`."""
    return np.float32(1) if block.residual is None else block.residual.scale


class IdnLayers:
    """Entry and blocks of IDN.

    Args:
        layers: at given bits.
        slope: of all leaky activations.
    """

    def __init__(self, layers: BoundLayers, slope: float) -> None:
        self._layers, self._slope = layers, slope

    @torch.inference_mode()
    def run(self, x: np.ndarray) -> np.ndarray:
        """Run entry and blocks on (h,w,3) float32 to (h,w,n) float32."""
        entry1, entry2 = self._layers.entry
        codes = self._codes(to_float(entry1, encode(as_tensor(x), entry1.grid)), entry2)
        hidden = self._leaky(to_float(entry2, codes))
        for block in self._layers.blocks:
            hidden = self._block(block, hidden)
        return as_array(hidden)

    def _block(self, block: DistillationBlock, x: Tensor) -> Tensor:
        first, second, third, fourth, fifth = block.convs
        codes = self._codes(to_float(first, encode(x, first.grid)), second)
        codes = self._codes(to_float(second, codes), third)
        distilled = self._leaky(to_float(block.distilling, codes))
        codes = self._codes(to_float(third, codes), fourth)
        codes = self._codes(to_float(fourth, codes), fifth)
        codes = self._codes(to_float(fifth, codes), block.last[0])
        features = (self._leaky(to_float(each, codes)) for each in block.last)
        joined = [a.add_(b) for a, b in zip(features, (x, distilled), strict=True)]
        return block.compression.on_tensor(torch.cat(joined, dim=1))

    def _codes(self, x: Tensor, following: BoundConv) -> Tensor:
        return encode(x, following.grid, slope=self._slope)

    def _leaky(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self._slope, inplace=True)


class CarnLayers:
    """The body of CARN.

    Args:
        blocks: all residual blocks at given bits, in order.
        inner, outer: the fusions, see `cabm.engine.programs.carn.CarnProgram`.
    """

    def __init__(
        self,
        blocks: Sequence[BoundBlock],
        inner: Sequence[Sequence[OnTensors]],
        outer: Sequence[OnTensors],
    ) -> None:
        self._blocks, self._inner, self._outer = blocks, inner, outer

    @torch.inference_mode()
    def run(self, x: np.ndarray) -> np.ndarray:
        """Run the body on (h,w,n) float32; the result has the same shape and type."""
        blocks = iter(self._blocks)
        hidden = as_tensor(x)
        cascades = [hidden]
        for fusions, fusion in zip(self._inner, self._outer, strict=True):
            collected = [hidden]
            for inner in fusions:
                collected.append(self._block(next(blocks), hidden))
                hidden = F.relu(inner.on_tensor(torch.cat(collected, dim=1)), inplace=True)
            cascades.append(hidden)
            hidden = F.relu(fusion.on_tensor(torch.cat(cascades, dim=1)), inplace=True)
        return as_array(hidden)

    def _block(self, block: BoundBlock, x: Tensor) -> Tensor:
        hidden = to_codes(block.conv1, encode(x, block.conv1.grid), block.conv2.grid)
        return F.relu(to_float(block.conv2, hidden).add_(x), inplace=True)
