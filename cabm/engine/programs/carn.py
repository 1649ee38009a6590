"""The integer program of CARN."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.engine.active_tail import active_tail, tail_layers
from cabm.engine.chains import Chain, Place, own
from cabm.engine.elementwise import encode
from cabm.engine.ends import Ends
from cabm.engine.float_conv import FloatConv
from cabm.engine.fused import Kernel, kernel_for, packing
from cabm.engine.grid import Storage
from cabm.engine.layer_numbers import AFTER, FIXED, JOIN, SINGLE_TO_BOTH, SLOPE, TO_CODES
from cabm.engine.packing import BoundConv, PackedConv, Row, grid_of, input_storage
from cabm.engine.tensors import through
from cabm.models.carn import CARN, NUM_STEPS, Cascade, ResidualBlock


@dataclass(frozen=True)
class _Block:
    """One residual block at given bits."""

    conv1: BoundConv
    conv2: BoundConv

    def run(self, x: Tensor) -> Tensor:
        """Return the block's output (N,n,h,w) float32."""
        hidden = self.conv1.to_codes(encode(x, self.conv1.grid), self.conv2.grid)
        return F.relu(self.conv2.to_float(hidden).add_(x), inplace=True)


class CarnProgram:
    """A trained CARN: residual blocks on bytes; head, fusions and tail in float.

    Blocks and fusions are one compiled call, or run layer by layer.

    Images that fusions read are of 16-bit numbers if the form has such images. This changes codes, but the
    result by less than 0.02 levels on average.

    Args:
        model: of any quantized kind, with float head and tail.
        ends: how the float convolutions run.
    """

    def __init__(self, model: CARN, ends: Ends) -> None:
        self._model = model
        self._kernel = kernel = kernel_for(model)
        packs = packing(kernel)
        self._packed = {
            block: (PackedConv(block.conv1, **packs), PackedConv(block.conv2, **packs))
            for block in model.modules()
            if isinstance(block, ResidualBlock)
        }
        cascades = [module for module in model.modules() if isinstance(module, Cascade)]
        self._fusions = {
            fusion: FloatConv(fusion.weight, fusion.bias, torch.float32)
            if kernel is None
            else kernel.pack_floats(
                fusion.weight.detach()[:, :, 0, 0].numpy(),
                fusion.bias.detach().numpy(),
                [fusion.out_channels] * (index + 2),
                compact=kernel.compact,
            )
            for cascade in cascades
            for index, fusion in enumerate(cascade.fusion)
        }
        self._head = FloatConv(model.head.weight, model.head.bias, torch.float32)
        slopes = [0.0] * len(model.factors)
        tail = [*model.upsample, model.tail], model.factors, slopes
        output = {"gain": 255.0, "offset": model.mean}
        self._rows = ends.rows(tail_layers(*tail, **output))
        self._tail = active_tail(*tail, ends.dtype, **output) if self._rows is None else None

    def plan(self, row: Row) -> dict[ResidualBlock, _Block] | Chain:
        """Return the residual blocks at the bits of ``row``."""
        blocks = {
            block: _Block(
                conv1=conv1.at(grid_of(block.act1, row, input_storage(block.act1))),
                conv2=conv2.at(grid_of(block.act2, row, Storage.POSITIVE)),
            )
            for block, (conv1, conv2) in self._packed.items()
        }
        return blocks if self._kernel is None else self._chain(self._kernel, list(blocks.values()))

    def run(self, x: Tensor, plan: dict[ResidualBlock, _Block] | Chain) -> Tensor:
        """Upscale one tile; see `cabm.engine.programs.Program`."""
        head = self._head(x / 255 - self._model.mean)
        if isinstance(plan, Chain):
            body = through(plan.run, head)
        else:
            body = self._cascade(self._model.body, head, plan)
        return self._tail(body, x) if self._rows is None else through(self._rows, body)

    def _chain(self, kernel: Kernel, blocks: list[_Block]) -> Chain:
        """Return the body as a chain. Images of all that a fusion reads replace concatenations."""
        body = self._model.body
        n, compact = blocks[0].conv1.conv.channels, kernel.compact
        fixed = kernel.form.compact == FIXED
        each = kernel.padded_floats(n, compact=compact)
        chain = Chain(kernel, n)
        parts = [n] * (NUM_STEPS + 1)
        inner = chain.floats(*parts, passing=True, compact=compact)
        outer = chain.floats(*parts, compact=compact)
        between = chain.floats(n, passing=True, compact=compact and not fixed)
        sums = chain.floats(n, passing=True) if fixed else between  # fixed point waits for the whole row
        hidden = chain.codes(n, 0)
        reads = {zero: chain.codes(n, zero) for zero in {block.conv1.grid.zero for block in blocks}}
        chain.begin_group()
        if fixed:
            chain.copy(between)
        for image in (inner, outer):
            chain.fix(between, Place(image)) if fixed else chain.copy(image)
        chain.encode(reads[blocks[0].conv1.grid.zero], blocks[0].conv1.grid)

        def fuse(conv: nn.Conv2d, source: int, following: _Block, floats: Place) -> None:
            grid, later = following.conv1.grid, fixed and floats.image in (inner, outer)
            places = {"target": reads[grid.zero], "floats": Place(between) if later else floats}
            chain.pointwise(self._fusions[conv], SINGLE_TO_BOTH, source, own(grid, 0.0), **places)
            if later:
                chain.fix(between, floats)

        for number, block in enumerate(blocks):
            step, index = divmod(number, NUM_STEPS)
            following = blocks[(number + 1) % len(blocks)]  # of the last block nothing follows
            chain.convolve(
                block.conv1, TO_CODES, reads[block.conv1.grid.zero], own(block.conv2.grid), target=hidden
            )
            to = Place(inner, (index + 1) * each)
            places = {
                "floats": Place(sums) if fixed else to,
                "addend": Place(between if index or fixed else inner),
            }
            chain.convolve(block.conv2, JOIN, hidden, {SLOPE: 1, AFTER: 0}, **places)
            if fixed:
                chain.fix(sums, to)
            last = index == NUM_STEPS - 1
            to = Place(outer, (step + 1) * each) if last else Place(between)
            fuse(body.blocks[step].fusion[index], inner, following, to)
            if last:
                if following is not blocks[0]:
                    chain.begin_group()
                to = Place(chain.result) if following is blocks[0] else Place(inner)
                fuse(body.fusion[step], outer, following, to)
        return chain

    def _cascade(self, cascade: Cascade, x: Tensor, plan: dict[ResidualBlock, _Block]) -> Tensor:
        collected, hidden = [x], x
        for block, fusion in zip(cascade.blocks, cascade.fusion, strict=True):
            if isinstance(block, Cascade):
                hidden = self._cascade(block, hidden, plan)
            else:
                hidden = plan[block].run(hidden)
            collected.append(hidden)
            hidden = F.relu(self._fusions[fusion](torch.cat(collected, dim=1)), inplace=True)
        return hidden
