"""0 bits: a residual block is skipped, sample by sample, in the backbones that have an identity path."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.checkpoints.model_directory import load_model, save_model
from cabm.errors import InputError
from cabm.evaluation.comparison import model_bitops
from cabm.models import BACKBONES, Backbone, build_model, carn
from cabm.models.base import image_gradient
from cabm.models.transfer import transfer_weights
from cabm.pipeline import train as steps
from cabm.quant import AlphaObserver, Precision, PrecisionContext, Quantized
from cabm.quant.layers import QuantConv2d, SelectedActivation
from cabm.tables.cost import bitops, skipped_share
from cabm.tiling.plan import plan
from cabm.training.loop import calibrate as calibrate_clips
from cabm.training.losses import LossWeights, Objective, attention_transfer
from cabm.upscaling.runners import ModelRunner
from cabm.upscaling.tiles import super_resolve

from .helpers import SMALL, image, randomise, small_model

SPACE = (0, 4, 6, 8)
SKIPPING = sorted(name for name, backbone in BACKBONES.items() if backbone.has_identity)
every_skipping = pytest.mark.parametrize("backbone", SKIPPING)


class Identity(nn.Module):
    """What stands in a block's place by hand: its input, and no feature."""

    def __init__(self, after: type[nn.Module] = nn.Identity, in_list: bool = False) -> None:
        super().__init__()
        self.after, self.in_list = after(), in_list

    def forward(self, x: Tensor, *arguments: object) -> tuple[Tensor, object]:
        nothing = torch.zeros_like(x)
        return self.after(x), [nothing] if self.in_list else nothing


def calibrated(backbone: str, kind: str, space: tuple[int, ...] = SPACE) -> Backbone:
    """Build a small model whose clip values come from data and differ between widths."""
    model = randomise(small_model(backbone, kind=kind, search_space=space)).eval()
    observer = AlphaObserver()
    with torch.no_grad():
        model(image(2, 9, 8), observer=observer)
        for quantizer in observer.modules():
            spread = torch.linspace(0.7, 1, quantizer.alpha.numel())
            quantizer.alpha.copy_(observer.mean_peak(quantizer) * spread)
    return model


def rows(model: Backbone, skipped: list[set[int]]) -> Tensor:
    """Return mixed bits, one row per set of blocks that it skips."""
    widths = torch.tensor(SPACE[1:])
    bits = widths[torch.arange(len(skipped) * model.num_adaptive).view(len(skipped), -1) % 3]
    for row, blocks in zip(bits, skipped, strict=True):
        for block in blocks:
            row[list(model.branches[block])] = 0
    return bits


def without_blocks(backbone: str, model: Backbone, skipped: set[int]) -> Backbone:
    """Return the model of the plain search space with these blocks replaced by hand."""
    twin = small_model(backbone, kind="cabm", search_space=SPACE[1:]).eval()
    twin.load_state_dict(model.state_dict())
    if backbone == "carn":
        for block in skipped:
            cascade = twin.body.blocks[block // carn.NUM_STEPS]
            cascade.blocks[block % carn.NUM_STEPS] = Identity(nn.ReLU, in_list=True)
        return twin
    for block in skipped:
        twin.body[block] = Identity()
    return twin


@every_skipping
def test_zero_bits_are_the_network_without_the_block(backbone):
    """Samples of a batch skip no, the first, the last and every block; each is the network by hand."""
    model = calibrated(backbone, "cabm")
    last = len(model.branches) - 1
    skipped = [set(), {0}, {last}, set(range(last + 1)), {0, last}]
    bits, x = rows(model, skipped), image(len(skipped), 9, 8)
    with torch.no_grad():
        together = model(x, bits)
        assert torch.equal(together.bits, bits)
        for index, blocks in enumerate(skipped):
            twin = without_blocks(backbone, model, blocks)
            given = torch.where(bits[index : index + 1] == 0, 4, bits[index : index + 1])
            wanted = twin(x[index : index + 1], given)
            torch.testing.assert_close(together.sr[index], wanted.sr[0], rtol=1e-5, atol=1e-3)
            for found, by_hand in zip(together.block_features, wanted.block_features, strict=True):
                assert bool((found[index] == 0).all()) == bool((by_hand == 0).all())
    assert (together.sr[0] - together.sr[1]).abs().max() > 0.1


def skip_flat_samples(model: Backbone, x: Tensor) -> None:
    """Let the selector of the first block skip the half of the samples that have the fewest edges."""
    edges = image_gradient(x)[:, 0] * model.gradient_scale
    opening = next(module for module in model.modules() if isinstance(module, SelectedActivation))
    with torch.no_grad():
        opening.selector.weight.zero_()
        opening.selector.weight[0, 0] = -1
        opening.selector.bias.zero_()
        opening.selector.bias[0] = edges.sort().values[2:4].mean()


@every_skipping
@pytest.mark.parametrize("kind", ["cadyq", "cabm"])
def test_inference_convolves_only_the_samples_that_are_not_skipped(backbone, kind):
    model = calibrated(backbone, kind)
    x = image(6, 9, 8) * torch.linspace(0.1, 1, 6).view(-1, 1, 1, 1)
    if kind == "cadyq":
        skip_flat_samples(model, x)
    ran: dict[str, int] = dict.fromkeys(model.layer_names, 0)
    for name in ran:
        module = model.get_submodule(name)
        module.register_forward_hook(
            lambda module, inputs, output, name=name: ran.__setitem__(name, len(output))
        )
    bits = None
    if kind == "cabm":
        everywhere = set(range(len(model.branches)))
        bits = rows(model, [set(), {0}, {0, 1}, everywhere, everywhere, {0}])
    with torch.no_grad():
        used = model(x, bits).bits
    counts = (used > 0).sum(dim=0).tolist()
    assert list(ran.values()) == counts
    assert len(set(counts)) > 1 and min(counts) < 6


@every_skipping
def test_training_starts_at_the_widest_and_gives_every_parameter_a_gradient(backbone):
    model = small_model(backbone, kind="cadyq", search_space=SPACE).train()
    x = image(6, 8, 9)
    output = model(x)
    assert output.bits.unique().tolist() == [8]
    with torch.no_grad():  # even odds: a fresh selector is so sure that its gradient underflows
        for name, value in model.named_parameters():
            if ".selector." in name:
                value.mul_(1e-6)
            elif name.endswith("alpha"):
                value.mul_(20)
    output = model(x)
    (output.sr.square().mean() + output.bit_cost.sum()).backward()
    for name, value in model.named_parameters():
        assert bool(value.grad.isfinite().all()), name
        if ".selector.bias" in name:
            assert bool((value.grad != 0).all()), f"some width of {name} learns nothing"


@every_skipping
def test_the_bit_loss_alone_leads_to_zero_bits(backbone):
    model = small_model(backbone, kind="cadyq", search_space=SPACE)
    selectors = [value for name, value in model.named_parameters() if ".selector." in name]
    with torch.no_grad():
        for value in selectors:
            value.mul_(1e-3)
    optimizer = torch.optim.SGD(selectors, lr=1e-3)
    x = image(4, 8, 8)
    for _ in range(60):
        optimizer.zero_grad()
        output = model(x)
        output.bit_cost.sum().backward()
        optimizer.step()
    assert bool((output.bits[:, [branch[0] for branch in model.branches]] == 0).any())


@every_skipping
def test_a_part_of_a_branch_is_refused(backbone):
    model = calibrated(backbone, "cabm")
    for positions in ((0,), (1,), (0, 1, 2)):
        bits = torch.full((2, model.num_adaptive), 8)
        bits[1, list(positions)] = 0
        with pytest.raises(ValueError, match="one residual branch"):
            model(image(2, 6, 6), bits)


@every_skipping
def test_branches_are_the_adaptive_convolutions_of_each_block(backbone):
    model = small_model(backbone, kind="cabm", search_space=SPACE)
    assert sorted(position for branch in model.branches for position in branch) == list(
        range(model.num_adaptive)
    )
    for branch in model.branches:
        owners = {model.layer_names[position].rpartition(".")[0] for position in branch}
        assert len(owners) == 1
    assert small_model(backbone, kind="cabm").branches == ()


def test_a_backbone_without_identity_path_refuses_zero_bits():
    assert set(SMALL) - set(SKIPPING) == {"idn"}
    for kind in ("cadyq", "cabm"):
        with pytest.raises(
            InputError, match=r"search_space: idn has no identity path .* take 0 out"
        ) as found:
            small_model("idn", kind=kind, search_space=SPACE)
        assert "\n" not in str(found.value)
    small_model("idn", kind="pams", search_space=SPACE)  # it has no search space


@every_skipping
def test_steps_and_checkpoints_carry_zero_bits(backbone, tmp_path):
    pams = randomise(small_model(backbone, kind="pams"))
    cadyq = small_model(backbone, kind="cadyq", search_space=SPACE)
    assert transfer_weights(pams, cadyq) == []
    first = next(name for name in cadyq.state_dict() if name.endswith("act1.alpha"))
    assert cadyq.state_dict()[first].tolist() == pams.state_dict()[first].expand(3).tolist()
    cabm = small_model(backbone, kind="cabm", search_space=SPACE)
    assert transfer_weights(cadyq, cabm) == []
    save_model(tmp_path / "cadyq", cadyq)
    loaded = load_model(tmp_path / "cadyq").model
    assert loaded.precision == cadyq.precision and loaded.branches == cadyq.branches
    x = image(2, 6, 6)
    with torch.no_grad():
        assert torch.equal(loaded(x).sr, cadyq.eval()(x).sr)
    with pytest.raises(InputError, match="search space"):
        transfer_weights(cadyq, small_model(backbone, kind="cabm"))


@every_skipping
def test_calibration_sets_a_clip_value_for_every_width_but_zero(backbone):
    class OneBatch:
        def batch(self, step: int) -> tuple[Tensor, Tensor]:
            return image(2, 8, 8), image(2, 16, 16)

    model = small_model(backbone, kind="cadyq", search_space=SPACE)
    found = calibrate_clips(model, OneBatch(), 1, method="error")
    alphas = {name for name in model.state_dict() if name.endswith("alpha")}
    assert set(found) == alphas
    assert all(len(found[f"{layer.rpartition('.')[0]}.act1.alpha"]) == 3 for layer in model.layer_names)


def test_a_skipped_feature_is_not_compared():
    student, teacher = torch.rand(3, 4, 5, 5), torch.rand(3, 4, 5, 5)
    student[1] = 0
    student.requires_grad_()
    loss = attention_transfer(student, teacher)
    others = [attention_transfer(student[i : i + 1], teacher[i : i + 1]) for i in (0, 2)]
    assert loss.item() == pytest.approx(sum(other.item() for other in others) / 3)
    loss.backward()
    assert bool(student.grad.isfinite().all()) and not student.grad[1].any()


def test_the_record_tells_the_bits_of_what_is_computed_and_the_share_skipped():
    model = calibrated("edsr", "cabm")
    bits = torch.tensor([[0, 0, 4, 8], [8, 8, 4, 4]])
    low, high = image(2, 8, 8), image(2, 16, 16)
    _, parts = Objective(LossWeights(), bits=lambda _: bits)(model, low, high, 0)
    assert parts["fab"] == pytest.approx((4 + 8 + 8 + 8 + 4 + 4) / 6)
    assert parts["skipped"] == pytest.approx(2 / 8)
    plain = calibrated("edsr", "cabm", SPACE[1:])
    _, parts = Objective(LossWeights(), bits=lambda _: bits.clamp(min=4))(plain, low, high, 0)
    assert "skipped" not in parts


def test_weights_at_the_activations_width_are_not_asked_for_zero_bits():
    precision = Precision("cabm", SPACE, weight_bits="same")
    model = build_model("edsr", 2, precision, SMALL["edsr"]).eval()
    read = []
    for module in model.modules():
        if isinstance(module, QuantConv2d):
            module.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].bits))
    with torch.no_grad():
        model(image(2, 6, 6), torch.tensor([[0, 0, 4, 8], [8, 6, 4, 4]]))
    assert [bits.tolist() for bits in read] == [[8], [6], [4, 4], [8, 4]]


def test_carn_keeps_the_relu_behind_a_skipped_residual():
    model = calibrated("carn", "cabm")
    block = model.body.blocks[0].blocks[0]
    x = torch.randn(2, 8, 4, 4)
    output, _ = block(x, PrecisionContext(bits=torch.zeros(2, model.num_adaptive, dtype=torch.int64)))
    assert torch.equal(output, F.relu(x))


@every_skipping
def test_bit_operations_are_those_of_the_convolutions_that_ran(backbone):
    """MACs of every convolution that ran, sample by sample, times the bits that it read."""
    model = calibrated(backbone, "cabm")
    everywhere = set(range(len(model.branches)))
    bits = rows(model, [set(), {0}, {1}, everywhere])
    tile_plan = plan(9, 4 * 8, 9, 8)
    done = []

    def count(conv: nn.Module, inputs: tuple, output: Tensor) -> None:
        read = inputs[0].bits if isinstance(inputs[0], Quantized) else torch.full((len(output),), 32)
        weights = 8 if isinstance(inputs[0], Quantized) else 32
        done.append(conv.weight.numel() * output[0, 0].numel() * weights * int(read.sum()))

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(image(4, 9, 9), bits)
    found = bitops(model.layers, bits, tile_plan, convention="patch", computed=[1] * 4)
    assert found == pytest.approx(sum(done), rel=1e-12)


def test_a_tile_whose_every_block_a_selector_skips_is_not_bypassed():
    """It enters the network: head and tail run and count, and the record says skipped."""
    model = small_model("edsr", kind="cadyq", search_space=SPACE)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("selector.bias") and len(value) == len(SPACE):
                value[0] = 1e6
    photo = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    result = super_resolve(ModelRunner(model), photo, tile=12, stride=10)
    assert not result.bits.any() and not result.bypassed.any()
    assert skipped_share(result.bits, result.bypassed) == 1
    ends = sum(layer.macs_per_pixel for layer in model.layers if not layer.adaptive)
    assert model_bitops(model, result, "patch") == 4 * 12 * 12 * ends * 32 * 32


def test_the_first_step_refuses_zero_bits_for_the_later_ones():
    """The float network could train for days before the third step finds that it cannot be."""
    params = SimpleNamespace(
        quantization=SimpleNamespace(search_space=SPACE), model=SimpleNamespace(name="idn")
    )
    stage = SimpleNamespace(settings=lambda: None, params=params)
    with pytest.raises(InputError, match="idn has no identity path"):
        steps.full_precision(stage)
