"""Weights fan out float -> pams -> cadyq -> cabm, and nothing else happens silently."""

from __future__ import annotations

import pytest
import torch

from cabm.errors import InputError
from cabm.models import build_model
from cabm.models.transfer import transfer_weights
from cabm.quant import KINDS, Precision
from tests.models.helpers import BACKBONES, randomise, small_model

ORDER = {kind: index for index, kind in enumerate(KINDS)}
STEPS = [(old, new) for old in KINDS for new in KINDS if ORDER[old] <= ORDER[new]]


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("old", "new"), STEPS)
@pytest.mark.parametrize("space", [(4, 8), (4, 6, 8), (2, 4, 6, 8)])
def test_every_step_takes_the_weights_of_the_steps_before_it(backbone, old, new, space):
    source = randomise(small_model(backbone, kind=old, search_space=space))
    target = randomise(small_model(backbone, kind=new, search_space=space), seed=2)
    fresh = state_of(target)

    unset = transfer_weights(source, target)

    given, result = source.state_dict(), target.state_dict()
    for name, value in result.items():
        if name.endswith("alpha"):
            if old == "float" or name not in given:
                assert name in unset
                torch.testing.assert_close(value, fresh[name], rtol=0, atol=0)
            elif given[name].numel() == 1:
                assert value.tolist() == given[name].tolist() * value.numel()
            else:
                assert torch.equal(value, given[name])
        elif ".selector." in name and name not in given:
            assert torch.equal(value, fresh[name])
        else:
            assert torch.equal(value, given[name]), name
    alphas = [name for name in result if name.endswith("alpha")]
    assert unset == (alphas if old == "float" and new != "float" else [])
    dropped = set(given) - set(result)
    assert all(".selector." in name for name in dropped)
    assert bool(dropped) == (old == "cadyq" and new == "cabm")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_table_model_computes_what_the_selector_model_did(backbone):
    source = randomise(small_model(backbone, kind="cadyq")).eval()
    target = small_model(backbone, kind="cabm").eval()
    transfer_weights(source, target)
    x = torch.rand(2, 3, 9, 11) * 255
    with torch.no_grad():
        selected = source(x)
        assigned = target(x, bits=selected.bits)
    assert torch.equal(selected.sr, assigned.sr)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_quantized_ends_need_calibration_when_they_are_new(backbone):
    source = randomise(small_model(backbone, kind="pams"))
    target = small_model(backbone, kind="pams", quantize_ends=True)
    unset = transfer_weights(source, target)
    assert unset
    assert set(unset) == {
        name for name in target.state_dict() if name.endswith("alpha") and name not in source.state_dict()
    }


def edsr(kind="float", scale=2, space=(4, 6, 8), **options):
    options = {"num_features": 4, "num_blocks": 2} | options
    return build_model("edsr", scale, Precision(kind, space), options)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ({"kind": "cadyq"}, {"kind": "pams"}, "a pams model cannot start from cadyq weights"),
        ({"kind": "cabm"}, {"kind": "cadyq"}, "a cadyq model cannot start from cabm weights"),
        ({"scale": 2}, {"scale": 3}, "edsr x2 cannot start edsr x3"),
        ({"num_features": 4}, {"num_features": 6}, r"head.weight is 4x3x3x3, expected 6x3x3x3"),
        ({"num_blocks": 1}, {"num_blocks": 2}, r"body.1.conv1.weight is missing"),
        ({"num_blocks": 2}, {"num_blocks": 1}, r"body.1.conv1.weight is not known"),
        (
            {"kind": "cadyq", "space": (4, 8)},
            {"kind": "cabm", "space": (4, 6)},
            r"search space \[4, 8\] cannot start one of \[4, 6\]",
        ),
    ],
)
def test_what_does_not_fit_is_an_error_and_changes_nothing(source, target, message):
    model = edsr(**target)
    before = state_of(model)
    with pytest.raises(InputError, match=message):
        transfer_weights(edsr(**source), model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
