"""Models whose weights are quantized once and whose quantizers return values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cabm.models import Backbone
from cabm.quant.folded import fold, foldable, in_half
from tests.engine.helpers import BACKBONES, CHOICES, calibrated, photograph, row, simulated


def difference(backbone: Backbone, other: Backbone) -> torch.Tensor:
    tiles, bits = photograph(24, 24, count=3), row(backbone, "mixed", 3)
    dtype = next(other.parameters()).dtype
    with torch.inference_mode():
        found = other(tiles.to(dtype), bits).sr.float()
    return (found - simulated(backbone, tiles, bits)).abs()


@pytest.mark.parametrize("kind", ["pams", "cabm"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_folded_model_computes_the_same_values(backbone, kind):
    model = calibrated(backbone, kind)
    assert foldable(model)
    folded = fold(model)
    assert {type(module) for module in folded.modules() if isinstance(module, nn.Conv2d)} == {nn.Conv2d}
    off = difference(model, folded)  # rounding moves a value now and then to the next code
    assert off.mean() < 0.05
    assert off.median() < 1e-2


@pytest.mark.parametrize("choice", CHOICES)
def test_all_choices_of_quantizers_fold(choice):
    model = calibrated("edsr", "cabm", **{choice: CHOICES[choice]})
    assert difference(model, fold(model)).mean() < 0.05


def test_quantized_ends_fold():
    model = calibrated("idn", "pams", quantize_ends=True)
    assert difference(model, fold(model)).mean() < 0.05


@pytest.mark.parametrize("backbone", BACKBONES)
def test_half_precision_stays_within_a_quarter_of_a_level(backbone):
    model = calibrated(backbone)
    off = difference(model, in_half(fold(model)))
    assert off.mean() < 0.25


def test_the_model_itself_does_not_change():
    model = calibrated("edsr")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    in_half(fold(model))
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(("kind", "options"), [("cadyq", {}), ("cabm", {"weight_bits": "same"})])
def test_models_that_choose_widths_while_they_run_do_not_fold(kind, options):
    assert not foldable(calibrated("edsr", kind, **options))
