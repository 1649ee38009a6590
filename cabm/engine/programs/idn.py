"""The integer program of IDN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cabm.engine import layer_numbers as numbering
from cabm.engine.bicubic_base import compiled, upscale
from cabm.engine.chains import Chain, Place, own
from cabm.engine.float_rows import Rows
from cabm.engine.float_tail import FloatTail
from cabm.engine.fused import FloatWeights, Kernel
from cabm.engine.grid import Storage
from cabm.engine.layer_numbers import (
    JOIN,
    LEAKY_TO_BOTH,
    LEAKY_TO_CODES,
    LEAKY_TO_FLOATS,
    SINGLE_TO_BOTH,
    ZERO,
)
from cabm.engine.packing import BoundConv, PackedConv, Quantizer, Row
from cabm.engine.programs import Convolution, Tail


@dataclass(frozen=True, eq=False)
class DistillationParts:
    """One distillation block for any row of bits.

    Attributes:
        quantizers: of what the six convolutions read.
        convs: the first five convolutions; of the third, the channels that the fourth reads.
        distilling: the third convolution's channels that skip the last three convolutions.
        last: the sixth convolution's channels to which the block's input is added, and those to which the
            distilled channels are.
        compression: the 1x1 convolution of these sums.
    """

    quantizers: tuple[Quantizer, ...]
    convs: tuple[PackedConv, ...]
    distilling: PackedConv
    last: tuple[PackedConv, PackedConv]
    compression: FloatWeights | Convolution

    def at(self, row: Row) -> DistillationBlock:
        """Return the block at a row of bits."""
        grids = [each.grid(row, Storage.SHIFTED) for each in self.quantizers]
        low, high = (conv.at(grids[5]) for conv in self.last)
        return DistillationBlock(
            convs=tuple(conv.at(grid) for conv, grid in zip(self.convs, grids[:5], strict=True)),
            distilling=self.distilling.at(grids[2]),
            last=(low, high),
            compression=self.compression,
        )


@dataclass(frozen=True, eq=False)
class DistillationBlock:
    """One distillation block at given bits; attributes as in `DistillationParts`."""

    convs: tuple[BoundConv, ...]
    distilling: BoundConv
    last: tuple[BoundConv, BoundConv]
    compression: FloatWeights | Convolution


class BoundLayers(NamedTuple):
    """Entry and blocks at given bits."""

    entry: tuple[BoundConv, BoundConv]
    blocks: list[DistillationBlock]


@dataclass(frozen=True, eq=False)
class IdnProgram:
    """Entry and distillation blocks on bytes; compressions and tail in float.

    The compressions stay in float32 with AMX, too. A code that is rounded differently changes many after
    it: images of bfloat16 leave the quality as it is, but change pixels by 0.2 to 0.35 levels on average.

    Attributes:
        scale: scale factor.
        slope: of all leaky activations.
        kernel: the compiled call for entry and blocks; None: they run layer by layer.
        entry: the two convolutions before the blocks.
        entry_quantizers: of what they read.
        blocks: the distillation blocks.
        rows: the tail, compiled; None: ``tail``.
        tail: the same in PyTorch.
    """

    scale: int
    slope: float
    kernel: Kernel | None
    entry: tuple[PackedConv, PackedConv]
    entry_quantizers: tuple[Quantizer, Quantizer]
    blocks: tuple[DistillationParts, ...]
    rows: Rows | FloatTail | None
    tail: Tail | None = None

    def __post_init__(self) -> None:
        compiled()  # before threads need it

    def plan(self, row: Row) -> Any:
        """Return entry and blocks at the bits of ``row``."""
        storages = Storage.POSITIVE, Storage.SHIFTED  # pixels are not negative
        parts = zip(self.entry, self.entry_quantizers, storages, strict=True)
        entry1, entry2 = (conv.at(act.grid(row, storage)) for conv, act, storage in parts)
        layers = BoundLayers((entry1, entry2), [block.at(row) for block in self.blocks])
        if self.kernel is not None:
            return _chain(self.kernel, layers, self.slope)
        from cabm.engine.layerwise import IdnLayers

        return IdnLayers(layers, self.slope)

    def run(self, x: np.ndarray, plan: Any) -> np.ndarray:
        """Upscale one tile; see `cabm.engine.programs.Program`."""
        hidden = plan.run(x)
        if self.rows is None:
            return self.tail(hidden, hidden, x)
        return self.rows(hidden, base=upscale(x, self.scale))


def _chain(kernel: Kernel, plan: BoundLayers, slope: float) -> Chain:
    """Return entry and blocks as a chain. Images of all that a compression reads replace concatenations."""
    entry1, entry2 = plan.entry
    n, distilled = entry2.conv.channels, plan.blocks[0].distilling.conv.channels
    chain = Chain(kernel, n)
    pixels, first = chain.codes(3, entry1.grid.zero), chain.codes(n, ZERO)
    images = [first, *(chain.codes(conv.conv.channels, ZERO) for conv in plan.blocks[0].convs)]
    joined = [chain.floats(n, distilled) for _ in range(2)]  # a compression reads one and writes the other
    beside = kernel.padded(n)
    entered = images[4]  # of n channels, too, and not in use yet
    chain.encode(pixels, entry1.grid)
    chain.convolve(entry1, LEAKY_TO_CODES, pixels, own(entry2.grid, slope), target=entered)
    numbers = own(plan.blocks[0].convs[0].grid, slope)
    chain.convolve(entry2, LEAKY_TO_BOTH, entered, numbers, target=first, floats=Place(joined[0]))
    for index, block in enumerate(plan.blocks):
        here, there = joined[index % 2], joined[1 - index % 2]
        for conv, following, source, target in zip(
            block.convs, [*block.convs[1:], block.last[0]], images[:-1], images[1:], strict=True
        ):
            chain.convolve(conv, LEAKY_TO_CODES, source, own(following.grid, slope), target=target)
        numbers = {numbering.SLOPE: slope, numbering.AFTER: 1}
        chain.convolve(block.distilling, LEAKY_TO_FLOATS, images[2], numbers, floats=Place(here, beside))
        for conv, place in zip(block.last, (Place(here), Place(here, beside)), strict=True):
            chain.convolve(conv, JOIN, images[5], numbers, floats=place, addend=place)
        last = index == len(plan.blocks) - 1
        grid = plan.blocks[0 if last else index + 1].convs[0].grid
        to = Place(chain.result if last else there)
        chain.pointwise(block.compression, SINGLE_TO_BOTH, here, own(grid), target=first, floats=to)
    return chain
