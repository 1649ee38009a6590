"""The contract of every backbone, in every precision and at every scale."""

from __future__ import annotations

import pytest
import torch

from cabm.errors import InputError
from cabm.models import BACKBONES as REGISTRY
from cabm.models import build_model
from cabm.quant import KINDS, AlphaObserver, Precision
from cabm.tables.cost import fab
from tests.models.helpers import (
    BACKBONES,
    SCALES,
    SIZES,
    averaging,
    bits_for,
    calibrate,
    check_adaptive_positions,
    check_gradients,
    check_layers,
    check_shapes,
    image,
    is_quantized,
    quantizers_of,
    randomise,
    reach_of,
    small_model,
)

every_backbone = pytest.mark.parametrize("backbone", BACKBONES)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_scale = pytest.mark.parametrize("scale", SCALES)
every_space = pytest.mark.parametrize("space", [(4, 8), (4, 6, 8), (2, 4, 6, 8)])
QUANTIZED = ("pams", "cadyq", "cabm")


def test_every_backbone_has_a_row():
    assert sorted(REGISTRY) == BACKBONES


@every_backbone
@every_kind
@every_scale
def test_outputs_of_odd_sizes_have_the_promised_shapes(backbone, kind, scale):
    model = randomise(small_model(backbone, kind=kind, scale=scale)).eval()
    for size in SIZES:
        check_shapes(model, size)


@every_backbone
@every_space
@pytest.mark.parametrize("kind", ["cadyq", "cabm"])
@pytest.mark.parametrize("weight_bits", [8, "same"])
def test_search_spaces_of_any_length_run(backbone, kind, space, weight_bits):
    model = small_model(backbone, kind=kind, search_space=space, weight_bits=weight_bits)
    check_shapes(randomise(model).eval(), (4, 6, 7))


@every_backbone
@every_kind
@every_scale
def test_gradient_reaches_every_parameter(backbone, kind, scale):
    check_gradients(small_model(backbone, kind=kind, scale=scale))


@every_backbone
@every_kind
def test_gradient_reaches_every_parameter_of_a_fully_quantized_model(backbone, kind):
    check_gradients(small_model(backbone, kind=kind, quantize_ends=True, weight_bits="same"))


@every_backbone
@every_kind
@every_scale
@pytest.mark.parametrize("quantize_ends", [False, True])
def test_layers_are_the_convolutions_in_order(backbone, kind, scale, quantize_ends):
    model = small_model(backbone, kind=kind, scale=scale, quantize_ends=quantize_ends)
    check_layers(model)
    for layer in model.layers:
        quantized = is_quantized(model.get_submodule(layer.name))
        assert layer.fixed_bits == (8 if quantized and not layer.adaptive else 32)
        assert quantized == (kind != "float" and (layer.adaptive or quantize_ends or layer.fixed_bits == 8))


@every_backbone
@pytest.mark.parametrize("quantize_ends", [False, True])
def test_columns_of_bits_are_the_adaptive_layers(backbone, quantize_ends):
    check_adaptive_positions(small_model(backbone, kind="cabm", quantize_ends=quantize_ends))


@pytest.mark.parametrize(
    ("backbone", "options", "count"),
    [
        ("edsr", {"num_features": 4, "num_blocks": 16}, 32),
        ("srresnet", {"num_features": 4, "num_blocks": 16}, 32),
        ("idn", {"num_features": 16, "num_distilled": 4, "num_blocks": 4}, 24),
        ("carn", {"num_features": 4}, 18),
    ],
)
def test_the_number_of_adaptive_layers_is_the_papers(backbone, options, count):
    assert small_model(backbone, options=options).num_adaptive == count


@every_backbone
@every_scale
def test_the_receptive_field_is_exact(backbone, scale):
    model = averaging(small_model(backbone, scale=scale))
    assert reach_of(model) == model.receptive_field


@every_backbone
@every_scale
@pytest.mark.parametrize("quantize_ends", [False, True])
def test_a_change_beyond_the_receptive_field_changes_nothing(backbone, scale, quantize_ends):
    model = small_model(backbone, kind="cabm", scale=scale, quantize_ends=quantize_ends)
    halo = model.receptive_field
    x = image(1, 5, 2 * halo + 6)
    calibrate(randomise(model).eval(), x, share=1.0)
    changed = x.clone()
    changed[..., :3] = 255 - changed[..., :3]
    bits = bits_for(model, 1)
    with torch.no_grad():
        difference = (model(x, bits=bits).sr - model(changed, bits=bits).sr).abs().amax(dim=(0, 1, 2))
    assert difference[: 3 * scale].max() > 0
    assert difference[(3 + halo) * scale :].max() == 0


@every_backbone
def test_fab_by_hand_of_selected_bits(backbone):
    """Set the selectors so that position i chooses width i mod 3."""
    model = small_model(backbone, kind="cadyq").eval()
    space, wanted = (4, 6, 8), []
    with torch.no_grad():
        selectors = [m.selector for m in model.modules() if hasattr(m, "selector")]
        for position, selector in enumerate(selectors):
            selector.weight.zero_()
            selector.bias.zero_()
            selector.bias[position % 3] = 1.0
            wanted.append(space[position % 3])
        output = model(image(2, 6, 7))
    assert output.bits.tolist() == [wanted, wanted]
    assert fab(output.bits) == sum(wanted) / len(wanted)
    # the bit loss's terms: bits over their expectation under softmax(0, 0, 1)
    e = torch.e
    for position, width in enumerate(wanted):
        odds = [e if k == position % 3 else 1.0 for k in range(3)]
        expected = sum(o * b for o, b in zip(odds, space, strict=True)) / sum(odds)
        assert output.bit_cost[0, position].item() == pytest.approx(width / expected, rel=1e-6)


@every_backbone
def test_fab_by_hand_of_assigned_bits(backbone):
    model = small_model(backbone, kind="cabm").eval()
    bits = torch.full((2, model.num_adaptive), 4)
    bits[0, 0], bits[1, -1] = 8, 6
    with torch.no_grad():
        output = model(image(2, 6, 7), bits=bits)
    assert torch.equal(output.bits, bits)
    assert fab(output.bits) == pytest.approx(4 + 6 / (2 * model.num_adaptive))


@every_backbone
def test_a_fresh_selector_starts_at_the_widest(backbone):
    model = small_model(backbone, kind="cadyq").eval()
    with torch.no_grad():
        assert model(image(2, 6, 7)).bits.unique().tolist() == [8]


@every_backbone
@pytest.mark.parametrize("kind", ["cadyq", "cabm"])
def test_samples_do_not_see_each_other(backbone, kind):
    model = randomise(small_model(backbone, kind=kind)).eval()
    x, bits = image(3, 7, 6), bits_for(model, 3)
    with torch.no_grad():
        together = model(x, bits=bits)
        for index in range(3):
            one = slice(index, index + 1)
            alone = model(x[one], bits=None if bits is None else bits[one])
            assert torch.equal(alone.bits, together.bits[one])
            torch.testing.assert_close(alone.sr, together.sr[one], rtol=1e-4, atol=1e-3)


@every_backbone
@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_ends_leave_no_float_convolution(backbone, kind):
    model = small_model(backbone, kind=kind, scale=4, quantize_ends=True)
    assert all(is_quantized(model.get_submodule(layer.name)) for layer in model.layers)
    x = image(1, 6, 7)
    calibrate(model.eval(), x, share=1.0)
    with torch.no_grad():
        bits = bits_for(model, 1)
        plain, collapsed = (model(x, bits=bits, collapse_tail=flag).sr for flag in (False, True))
    assert torch.equal(plain, collapsed)
    assert model.tail_border is None
    assert len(quantizers_of(model)) > len(quantizers_of(small_model(backbone, kind=kind, scale=4)))


@every_backbone
@every_kind
def test_calibration_runs_the_float_model(backbone, kind):
    """Quantizers under observation pass their input, and see the largest values of each sample."""
    model = small_model(backbone, kind=kind, quantize_ends=True).eval()
    observer = AlphaObserver()
    x = image(2, 6, 7)
    with torch.no_grad():
        observed = model(x, observer=observer)
    assert observed.bits is None
    reached = observer.modules()
    assert len(reached) == sum(name.endswith("alpha") for name in model.state_dict())
    assert all(observer.mean_peak(module) > 0 for module in reached)


@every_backbone
@every_kind
def test_bfloat16_autocast_keeps_the_trunk_in_float32(backbone, kind):
    model = small_model(backbone, kind=kind).eval()
    x, bits = image(2, 8, 7), bits_for(model, 2)
    calibrate(model, x, share=1.0)
    with torch.no_grad():
        exact = model(x, bits=bits).sr
        with torch.autocast("cpu", torch.bfloat16):
            fast = model(x, bits=bits)
    assert fast.sr.dtype == torch.float32
    assert (fast.sr - exact).abs().mean() < 3


@every_backbone
@every_kind
def test_channels_last_computes_the_same(backbone, kind):
    model = randomise(small_model(backbone, kind=kind)).eval()
    x, bits = image(2, 7, 6), bits_for(model, 2)
    with torch.no_grad():
        expected = model(x, bits=bits).sr
        model.to(memory_format=torch.channels_last)
        found = model(x.to(memory_format=torch.channels_last), bits=bits).sr
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)


@every_backbone
@every_kind
def test_bits_are_asked_for_where_they_are_needed(backbone, kind):
    model = small_model(backbone, kind=kind)
    x = image(1, 5, 5)
    if kind != "cabm":
        with pytest.raises(ValueError, match="takes no bits"):
            model(x, bits=torch.full((1, model.num_adaptive), 8))
        return
    with pytest.raises(ValueError, match="needs bits"):
        model(x)
    with pytest.raises(ValueError, match="shape"):
        model(x, bits=torch.full((2, model.num_adaptive), 8))
    with pytest.raises(ValueError, match="search space"):
        model(x, bits=torch.full((1, model.num_adaptive), 5))


@every_backbone
def test_the_same_options_build_the_same_network(backbone):
    model = small_model(backbone, kind="cadyq")
    again = build_model(backbone, 2, model.precision, model.options)
    again.load_state_dict(model.state_dict())
    assert model.layers == again.layers
    assert model.receptive_field == again.receptive_field


@every_backbone
def test_wrong_options_are_the_users_error(backbone):
    with pytest.raises(InputError, match="scale must be one of 2, 3, 4"):
        build_model(backbone, 5, Precision())
    with pytest.raises(InputError, match=rf"{backbone} cannot be built with .*depth"):
        build_model(backbone, 2, Precision(), {"depth": 3})
    for value in (8.5, "8", True, -1, 10**9, float("nan"), None, [8]):
        with pytest.raises(InputError, match=rf"{backbone} cannot be built with num_features .* whole"):
            build_model(backbone, 2, Precision(), {"num_features": value})
    with pytest.raises(InputError, match="unknown backbone 'rcan'"):
        build_model("rcan", 2, Precision())


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
def test_replicating_tail_collapses_without_a_border(scale, size):
    torch.manual_seed(0)
    options = {"num_features": 6, "num_blocks": 1, "replicate_tail": True}
    model = build_model("edsr", scale, Precision("float"), options).double().eval()
    x = torch.rand(2, 3, *size, dtype=torch.float64) * 255
    plain, collapsed = (model(x, collapse_tail=flag).sr for flag in (False, True))
    torch.testing.assert_close(plain, collapsed, rtol=0, atol=1e-9)
    assert plain.shape[2:] == (size[0] * scale, size[1] * scale) and model.tail_border == 0


def test_replicating_tail_differs_from_the_published_one_only_near_the_border():
    models = []
    for replicate in (False, True):
        torch.manual_seed(0)
        options = {"num_features": 6, "num_blocks": 1, "replicate_tail": replicate}
        models.append(build_model("edsr", 4, Precision("float"), options).eval())
    x = torch.rand(1, 3, 12, 12) * 255
    with torch.no_grad():
        published, ours = (model(x).sr for model in models)
    inside = slice(8, -8)
    torch.testing.assert_close(published[..., inside, inside], ours[..., inside, inside])
    assert not torch.equal(published, ours)
