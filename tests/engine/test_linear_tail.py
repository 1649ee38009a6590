from __future__ import annotations

import pytest
import torch

from cabm.engine.active_tail import ActiveTail
from cabm.engine.building.idn import as_convolution
from cabm.engine.linear_tail import CollapsedTail, Edge, collapse_at
from cabm.models import build_model
from cabm.models.tail import collapse
from cabm.quant import Precision, PrecisionContext

SIZES = [(9, 12), (3, 3), (4, 7), (2, 5), (1, 1), (3, 1)]


def parts(scale: int) -> tuple[list[torch.nn.Conv2d], tuple[int, ...]]:
    torch.manual_seed(scale)
    model = build_model("edsr", scale, Precision(), {"num_features": 6, "num_blocks": 1})
    return [*model.upsample, model.tail], tuple(model.factors)


def by_layers(convs: list[torch.nn.Conv2d], factors: tuple[int, ...], x: torch.Tensor, slope: float = 1.0):
    for conv, factor in zip(convs, factors, strict=False):
        x = torch.nn.functional.leaky_relu(torch.pixel_shuffle(conv(x), factor), slope)
    return convs[-1](x)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_inner_kernel_equals_the_models_collapsed_tail(scale: int) -> None:
    convs, factors = parts(scale)
    for found, wanted in zip(collapse_at(convs, factors, Edge()), collapse(convs, factors), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_the_collapsed_tail_is_exact_up_to_the_border(scale: int, size: tuple[int, int]) -> None:
    convs, factors = parts(scale)
    x = torch.randn(2, 6, *size)
    found = CollapsedTail(convs, factors, torch.float32)(x, torch.zeros(2, 3, *size))
    torch.testing.assert_close(found, by_layers(convs, factors, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 8)])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_replicating_tail_equals_the_models(dtype: torch.dtype, scale: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    options = {"num_features": 6, "num_blocks": 1, "replicate_tail": True}
    model = build_model("edsr", scale, Precision("float"), options)
    feature, image = torch.randn(2, 6, *size), torch.randn(2, 3, *size)
    wanted = model.run_tail(feature, PrecisionContext(), collapse_tail=False)
    tail = CollapsedTail([*model.upsample, model.tail], model.factors, dtype, replicate=True)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(tail(feature, image), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_bfloat16_loses_little_where_the_result_resembles_the_image(scale: int) -> None:
    convs, factors = parts(scale)
    weight, bias = collapse(convs, factors)
    feature = torch.randn(1, 6, 30, 31)
    exact = CollapsedTail(convs, factors, torch.float32)(feature, torch.zeros(1, 3, 30, 31))
    # an image like the result, at a level where bfloat16 has steps of 0.5
    convs[-1].bias.add_(100)
    image = torch.full((1, 3, 30, 31), 100.0)
    found = CollapsedTail(convs, factors, torch.bfloat16)(feature, image)
    naive = torch.nn.functional.conv2d(
        feature.bfloat16(), weight.bfloat16(), (bias + 100).bfloat16(), padding=weight.shape[-1] // 2
    )
    error = float((found - 100 - exact).abs().mean())
    assert error < 0.02
    assert error < 0.25 * float((torch.pixel_shuffle(naive.float(), scale) - 100 - exact).abs().mean())


@pytest.mark.parametrize("slope", [0.0, 0.25])
@pytest.mark.parametrize("size", [(9, 12), (2, 5), (1, 1)])
@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_a_tail_with_activations_equals_its_layers(scale: int, size: tuple[int, int], slope: float) -> None:
    convs, factors = parts(scale)
    x, image = torch.randn(1, 6, *size), (torch.rand(1, 3, *size) * 255).round()
    mean = torch.tensor([0.4, 0.5, 0.6])
    slopes = [slope] * len(factors)
    wanted = (by_layers(convs, factors, x, slope) + mean.view(1, 3, 1, 1)) * 255
    exact = ActiveTail(convs, factors, slopes, torch.float32, gain=255.0, offset=mean)(x, image)
    torch.testing.assert_close(exact, wanted, rtol=1e-5, atol=1e-3)
    rough = ActiveTail(convs, factors, slopes, torch.bfloat16, gain=255.0, offset=mean)(x, image)
    assert float((rough - wanted).abs().mean()) < 0.02 * float((wanted - 128).abs().mean() + 50)


@pytest.mark.parametrize(("stride", "size"), [(2, 17), (3, 17), (4, 17), (2, 5), (3, 7)])
@torch.no_grad()
def test_a_transposed_convolution_equals_one_before_pixel_shuffle(stride: int, size: int) -> None:
    torch.manual_seed(0)
    deconv = torch.nn.ConvTranspose2d(4, 3, size, stride=stride, padding=size // 2)
    x = torch.randn(1, 4, 7, 9)
    wanted = deconv(x, output_size=[7 * stride, 9 * stride])
    weight, bias = as_convolution(deconv)
    phases = torch.nn.functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
    torch.testing.assert_close(torch.pixel_shuffle(phases, stride), wanted, rtol=0, atol=1e-5)
