"""0 bits on integers: skipped blocks do not run, and what follows reads the simulation's codes."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cabm.checkpoints.export import compare_onnx, export_onnx
from cabm.engine import compile_model
from cabm.engine.grid import Grid
from cabm.engine.onednn import IntegerConv
from cabm.errors import InputError
from cabm.models import BACKBONES as KNOWN
from cabm.models import Backbone

from .helpers import OPTIONS, calibrated, needs_units, photograph, row
from .test_integer import close, codes_read

SPACE = (0, 4, 6, 8)
BACKBONES = sorted(name for name in OPTIONS if KNOWN[name].has_identity)
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


def skipping(backbone: str, **arguments: object) -> Backbone:
    """Build a small calibrated model with 0 in its search space, and blocks enough for gaps in a row."""
    options = {} if backbone == "carn" else {"num_blocks": 3}
    return calibrated(backbone, options=options, search_space=SPACE, **arguments)


def skipping_rows(model: Backbone, blocks: list[set[int]]) -> Tensor:
    """Return rows of mixed bits, each skipping the blocks of its set."""
    mixed = row(model, "mixed", count=len(blocks)).clamp(min=4)
    for bits, skipped in zip(mixed, blocks, strict=True):
        for block in skipped:
            bits[list(model.branches[block])] = 0
    return mixed


def all_sets(model: Backbone) -> list[set[int]]:
    """Return every set of the first three blocks, and all blocks."""
    sets = [set(some) for n in range(4) for some in itertools.combinations(range(3), n)]
    return [*sets, set(range(len(model.branches)))]


@needs_units
@every_backbone
def test_agrees_with_the_simulation_whichever_blocks_are_skipped(backbone: str) -> None:
    model = skipping(backbone)
    bits = skipping_rows(model, all_sets(model))
    close(model, photograph(19, 14, count=len(bits), seed=5), bits, 0.05)


@needs_units
@every_backbone
@pytest.mark.parametrize("blocks", [{0}, {1}, {2}, {0, 1}, {1, 2}, {0, 2}])
def test_every_layer_reads_the_simulations_codes(
    backbone: str, blocks: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer is given the simulation's codes; what the next one reads must be the simulation's too.

    Behind a skipped block this is the sum before it, in the codes of the next block that runs.
    """
    model = skipping(backbone)
    tiles, bits = photograph(40, 37, seed=11), skipping_rows(model, [blocks])
    reference = codes_read(model, tiles, bits)
    position, shares = iter(reference), []
    plain = IntegerConv._run

    def forced(self: IntegerConv, x: Tensor, grid: Grid, *arguments: object) -> Tensor:
        wanted = (next(position) + grid.zero).to(x.dtype)
        shares.append(float((x != wanted).float().mean()))
        return plain(self, wanted.contiguous(memory_format=torch.channels_last), grid, *arguments)

    monkeypatch.setattr(IntegerConv, "_run", forced)
    compile_model(model).run(tiles, bits, threads=1)
    # both convolutions of the blocks that run, and no other
    assert len(shares) == len(reference) == int((bits > 0).sum())
    assert max(shares) <= 1e-4


@needs_units
@pytest.mark.parametrize("arguments", [{"weight_bits": "same"}, {"scale": 4}])
def test_agrees_with_other_weights_and_scales(arguments: dict[str, object]) -> None:
    model = skipping("edsr", **arguments)
    close(model, photograph(12, 17, count=2, seed=9), skipping_rows(model, [{1}, {0, 2}]), 0.05)


@needs_units
def test_scaled_residuals_are_skipped_too() -> None:
    model = calibrated("edsr", options={"num_blocks": 3, "res_scale": 0.1}, search_space=SPACE)
    close(model, photograph(12, 17, seed=10), skipping_rows(model, [{1}]), 0.05)


@needs_units
def test_wrong_zeros_are_refused() -> None:
    model = skipping("edsr")
    tiles = photograph(8, 8)
    half = skipping_rows(model, [set()])
    half[0, 2] = 0
    with pytest.raises(ValueError, match="one residual branch"):
        compile_model(model).run(tiles, half)
    with pytest.raises(ValueError, match=r"\[0\] are not in the search space \[4, 6, 8\]"):
        compile_model(calibrated("edsr")).run(tiles, torch.zeros(1, 4, dtype=torch.int64))


@every_backbone
@pytest.mark.parametrize("blocks", [{0}, {1, 2}])
def test_onnx_leaves_skipped_blocks_out(backbone: str, blocks: set[int], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = skipping(backbone)
    bits = tuple(skipping_rows(model, [blocks])[0].tolist())
    export_onnx(model, tmp_path / "model.onnx", bits)
    agreement = compare_onnx(model, tmp_path / "model.onnx", photograph(13, 16, seed=2), bits)
    assert agreement.integer_convolutions == sum(width > 0 for width in bits)
    assert agreement.psnr > 45
    with pytest.raises(InputError, match="one residual branch"):
        export_onnx(model, tmp_path / "half.onnx", (0, *bits[1:]) if bits[0] else (4, *bits[1:]))
