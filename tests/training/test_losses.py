"""Losses against closed forms."""

from __future__ import annotations

import pytest
import torch

from cabm.models import build_model
from cabm.models.transfer import transfer_weights
from cabm.quant import Precision
from cabm.training.losses import LossWeights, Objective, attention_transfer

OPTIONS = {"num_features": 8, "num_blocks": 2}


def test_attention_transfer_by_hand() -> None:
    student = torch.tensor([[[[1.0, 2.0]], [[1.0, 0.0]]]])  # channel means of squares: 1, 2
    teacher = torch.tensor([[[[3.0, 0.0]], [[1.0, 2.0]]]])  # 5, 2
    s = torch.tensor([1.0, 2.0]) / 5**0.5
    t = torch.tensor([5.0, 2.0]) / 29**0.5
    assert attention_transfer(student, teacher).item() == pytest.approx(((s - t) ** 2).mean().item())


def test_attention_transfer_ignores_scale_and_stops_at_the_teacher() -> None:
    student = torch.rand(2, 3, 4, 4, requires_grad=True)
    teacher = torch.rand(2, 3, 4, 4, requires_grad=True)
    loss = attention_transfer(student, teacher)
    assert attention_transfer(student * 7, teacher).item() == pytest.approx(loss.item(), rel=1e-4)
    loss.backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_objective_adds_up_its_parts() -> None:
    torch.manual_seed(0)
    teacher = build_model("edsr", 2, Precision("float"), OPTIONS).eval()
    model = build_model("edsr", 2, Precision("cadyq"), OPTIONS)
    transfer_weights(teacher, model)
    low, high = torch.rand(2, 3, 8, 8) * 255, torch.rand(2, 3, 16, 16) * 255
    weights = LossWeights(output=0.5, feature=1000, blocks=100, bits=1e-2, bits_per_step=1e-3)
    objective = Objective(weights, teacher)
    total, parts = objective(model, low, high, step=10)
    terms = ("l1", "output", "feature", "blocks", "bits")
    assert set(parts) == {*terms, "fab"}
    assert total.item() == pytest.approx(sum(parts[name] for name in terms))
    assert parts["fab"] == 8
    output, target = model(low), teacher(low)
    # sg(expected) only scales the gradient: forward, each term is bits over expected bits
    assert parts["bits"] == pytest.approx((1e-2 + 1e-3 * 10) * output.bit_cost.sum().item())
    assert parts["l1"] == pytest.approx((output.sr - high).abs().mean().item())
    assert parts["output"] == pytest.approx(0.5 * (output.sr - target.sr).abs().mean().item())
    blocks = zip(output.block_features, target.block_features, strict=True)
    assert parts["blocks"] == pytest.approx(100 * sum(attention_transfer(s, t).item() for s, t in blocks))


def test_the_student_sees_limited_contrast_and_is_compared_at_full_contrast() -> None:
    torch.manual_seed(0)
    teacher, model = (build_model("edsr", 2, Precision("float"), OPTIONS).eval() for _ in range(2))
    low, high = torch.rand(2, 3, 8, 8) * 255, torch.rand(2, 3, 16, 16) * 255
    low[0] *= 0.1  # within the limit
    _, parts = Objective(LossWeights(output=1.0), teacher, contrast_limit=40.0)(model, low, high, 0)
    mean = low.mean(dim=(2, 3), keepdim=True)
    factor = torch.tensor([1.0, low[1].std(dim=(1, 2), correction=0).mean() / 40]).view(-1, 1, 1, 1)
    image = mean + (model(mean + (low - mean) / factor).sr - mean) * factor
    assert factor[1] > 1.5
    assert parts["l1"] == pytest.approx((image - high).abs().mean().item(), rel=1e-5)
    assert parts["output"] == pytest.approx((image - teacher(low).sr).abs().mean().item(), rel=1e-5)


def test_border_lets_the_tail_collapse_without_changing_the_loss() -> None:
    torch.manual_seed(0)
    model = build_model("edsr", 4, Precision("float"), OPTIONS).double()
    low, high = torch.rand(2, 3, 8, 8).double() * 255, torch.rand(2, 3, 32, 32).double() * 255
    collapsed, _ = Objective(LossWeights(border=model.tail_border))(model, low, high, 0)
    crop = slice(model.tail_border, -model.tail_border)
    plain = (model(low).sr - high)[..., crop, crop].abs().mean().float()
    assert collapsed.item() == pytest.approx(plain.item(), rel=1e-5)
