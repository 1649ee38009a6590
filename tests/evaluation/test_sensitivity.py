"""The noise that each width of each layer adds to a model's output."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cabm.evaluation.sensitivity import layer_noise
from cabm.models import build_model
from cabm.quant import AlphaObserver, Precision


class Patches:
    """The same four patches of noise in every batch."""

    def batch(self, step):
        low = torch.from_numpy(np.random.default_rng(step).integers(0, 256, (4, 3, 12, 12), dtype=np.uint8))
        return low, low


@pytest.fixture
def model():
    torch.manual_seed(0)
    precision = Precision("cadyq", (3, 4, 8), skip=8, after_relu="unsigned", weight_granularity="channel")
    model = build_model("edsr", 2, precision, {"num_features": 8, "num_blocks": 2})
    observer = AlphaObserver()
    with torch.no_grad():
        model(Patches().batch(0)[0].float(), observer=observer)
        for quantizer in observer.modules():
            quantizer.alpha.fill_(observer.mean_peak(quantizer))
    return model


def test_fewer_bits_are_noisier_and_the_widest_is_the_reference(model):
    noise = layer_noise(model, Patches(), 2)
    assert noise.shape == (4, 3)
    assert (noise[:, 2] == 0).all()
    assert (noise[:, 0] > noise[:, 1]).all() and (noise[:, 1] > 0).all()


def test_a_layer_that_the_output_does_not_depend_on_has_no_noise(model):
    with torch.no_grad():
        model.body[1].conv2.weight.zero_()  # what its block reads no longer matters; the skip has 8 bits
    noise = layer_noise(model, Patches(), 1)
    assert (noise[2:] == 0).all()
    assert (noise[:2, 0] > 0).all()


def test_noise_falls_by_four_with_every_bit(model):
    """Of uniform rounding: the squared error is a twelfth of the squared step."""
    noise = layer_noise(model, Patches(), 4)
    steps = (7 / 3) ** 2  # codes of 3 and 4 bits reach 3 and 7, unsigned ones 7 and 15
    assert noise[0::2, 0] / noise[0::2, 1] == pytest.approx(steps, rel=0.5)
    assert noise[1::2, 0] / noise[1::2, 1] == pytest.approx((15 / 7) ** 2, rel=0.5)


def test_the_model_is_left_alone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer_noise(model, Patches(), 1)
    assert model.precision.kind == "cadyq"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
