"""1x1 convolutions of float32 images in every form, and images that hold only some of their rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cabm.engine.chains import Chain, Place
from cabm.engine.fused import Kernel
from cabm.engine.layer_numbers import SINGLE_TO_FLOATS, SLOPE
from tests.engine.helpers import FORMS, compiled

ERRORS = {"matrix 512": 2.0**-15}
"""Largest error relative to the sum of the products' sizes, where it is not that of float32."""


@pytest.fixture(params=FORMS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return compiled(request.param)


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, 1).requires_grad_(False)


@pytest.mark.parametrize("inputs", [3, 16, 44, 80, 256])
@pytest.mark.parametrize("size", [(1, 1), (3, 32), (5, 45)])
def test_sums_are_those_of_float64(kernel: Kernel, inputs: int, size: tuple[int, int]) -> None:
    conv = convolution(inputs, 40)
    x = torch.randn(1, inputs, *size) * torch.logspace(-4, 4, inputs)[:, None, None]
    chain = Chain(kernel, 40)
    image = chain.floats(inputs)
    chain.copy(image)
    weights, to = kernel.pack_floats(conv, [inputs]), Place(chain.result)
    chain.pointwise(weights, SINGLE_TO_FLOATS, image, {SLOPE: 0.25}, floats=to)
    conv.double()
    wanted = nn.functional.leaky_relu(conv(x.double()), 0.25)
    most = nn.functional.conv2d(x.double().abs(), conv.weight.abs()) + 1
    assert ((chain.run(x) - wanted).abs() / most).max() < ERRORS.get(kernel.form.name, 1e-6)


@pytest.mark.parametrize("size", [(1, 5), (2, 33), (23, 40)])
def test_steps_in_turns_change_nothing(kernel: Kernel, size: tuple[int, int]) -> None:
    convs = [kernel.pack_floats(convolution(48, 48), [48]) for _ in range(3)]
    x = torch.randn(1, 48, *size)

    def run(*, turns: bool) -> torch.Tensor:
        chain = Chain(kernel, 48)
        images = [chain.floats(48, passing=turns) for _ in range(2)]
        if turns:
            chain.begin_group()
        chain.copy(images[0])
        for index, conv in enumerate(convs):
            to = chain.result if index == 2 else images[1 - index % 2]
            chain.pointwise(conv, SINGLE_TO_FLOATS, images[index % 2], {SLOPE: 0.5}, floats=Place(to))
        return chain.run(x)

    assert torch.equal(run(turns=True), run(turns=False))
