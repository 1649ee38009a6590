"""A new backbone is one file, one registry line and one row of the tests: done here for a toy."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cabm.models import BACKBONES as REGISTRY
from cabm.models import Backbone, SROutput, transfer_weights
from cabm.models.base import grid_reach
from cabm.quant import KINDS
from tests.models import helpers

# the file ------------------------------------------------------------------------------------------


class Toy(Backbone):
    """Two convolutions and a PixelShuffle."""

    name = "toy"

    def __init__(self, scale, precision, num_features=8):
        super().__init__(scale, precision, {"num_features": num_features})
        self.head_act = self.quantizers.end()
        self.head = self.quantizers.conv(3, num_features, 3, reads="end")
        self.act = self.quantizers.adaptive(num_features)
        self.conv = self.quantizers.conv(num_features, 3 * scale**2, 3)
        self.add_layer("head")
        self.add_layer("conv", adaptive=True)
        self.receptive_field = 1 + grid_reach([1], [])

    def run(self, x, context, *, collapse_tail):
        feature = F.relu(self.head(self.head_act(x, context))).to(x.dtype)
        phases = self.conv(self.act(feature, context))
        return SROutput(F.pixel_shuffle(phases, self.scale), feature, [phases])


# the registry line, and the row --------------------------------------------------------------------


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(REGISTRY, Toy.name, Toy)
    monkeypatch.setitem(helpers.SMALL, "toy", {"num_features": 8})


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantize_ends", [False, True])
def test_it_passes_what_every_backbone_passes(kind, scale, quantize_ends):
    model = helpers.small_model("toy", kind=kind, scale=scale, quantize_ends=quantize_ends)
    helpers.check_layers(model)
    helpers.check_gradients(model)
    for size in helpers.SIZES:
        helpers.check_shapes(model.eval(), size)
    if kind == "cabm":
        helpers.check_adaptive_positions(model)
    if kind == "float":
        assert helpers.reach_of(helpers.averaging(model)) == model.receptive_field


def test_its_weights_go_through_every_step():
    x = helpers.image(2, 6, 7)
    steps = [helpers.small_model("toy", kind=kind).eval() for kind in KINDS]
    helpers.randomise(steps[0])
    assert transfer_weights(steps[0], steps[1]) == ["act.alpha"]
    helpers.calibrate(steps[1], x)
    assert transfer_weights(steps[1], steps[2]) == []
    assert transfer_weights(steps[2], steps[3]) == []
    with torch.no_grad():
        selected = steps[2](x)
        assert selected.bits.tolist() == [[8], [8]]  # a fresh selector starts at the widest
        assert torch.equal(steps[3](x, bits=selected.bits).sr, selected.sr)
        torch.testing.assert_close(selected.sr, steps[1](x).sr)
