"""1x1 convolutions of images of floats in every form, and images that hold only some of their rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cabm.engine.chains import Chain, Place
from cabm.engine.fused import Kernel
from cabm.engine.layer_numbers import FIXED, SINGLE_TO_FLOATS, SLOPE
from tests.engine.helpers import FORMS, compiled, pack_floats

from .helpers import through


@pytest.fixture(params=FORMS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return compiled(request.param)


@pytest.fixture
def rounding() -> Kernel:
    return compiled("matrix 512")


@pytest.fixture(params=[name for name in FORMS if not name.startswith("matrix")])
def fixing(request: pytest.FixtureRequest) -> Kernel:
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
    weights, to = pack_floats(kernel, conv, [inputs]), Place(chain.result)
    chain.pointwise(weights, SINGLE_TO_FLOATS, image, {SLOPE: 0.25}, floats=to)
    conv.double()
    wanted = nn.functional.leaky_relu(conv(x.double()), 0.25)
    most = nn.functional.conv2d(x.double().abs(), conv.weight.abs()) + 1
    assert ((through(chain.run, x) - wanted).abs() / most).max() < 1e-6


@pytest.mark.parametrize("inputs", [3, 32, 44, 80])
@pytest.mark.parametrize("size", [(1, 1), (3, 32), (5, 45)])
def test_rounded_images_are_bfloat16(rounding: Kernel, inputs: int, size: tuple[int, int]) -> None:
    """Two convolutions: what they read is rounded, weights keep 16 bits, and sums are float32."""
    convs = convolution(inputs, 40), convolution(40, 40)
    x = torch.randn(1, inputs, *size)
    chain = Chain(rounding, 40)
    images = [chain.floats(count, compact=True) for count in (inputs, 40)]
    chain.copy(images[0])
    for conv, source, to in zip(convs, images, (images[1], chain.result), strict=True):
        weights = pack_floats(rounding, conv, [conv.in_channels], compact=True)
        chain.pointwise(weights, SINGLE_TO_FLOATS, source, {SLOPE: 0.25}, floats=Place(to))
    wanted, most = x, torch.zeros(1)
    for conv in convs:
        wanted = wanted.bfloat16().float()
        most = nn.functional.conv2d(wanted.abs(), conv.weight.abs()) + 1
        wanted = nn.functional.leaky_relu(conv(wanted), 0.25)
    # where a sum of the first is at the edge between two bfloat16, the second reads the other one
    errors = (through(chain.run, x) - wanted).abs() / most
    assert errors.max() < 2.0**-8
    assert errors.mean() < 2.0**-14


@pytest.mark.parametrize("inputs", [16, 64, 208])
@pytest.mark.parametrize("size", [(1, 1), (3, 32), (5, 45)])
def test_images_in_fixed_point_have_a_scale_for_each_row(
    fixing: Kernel, inputs: int, size: tuple[int, int]
) -> None:
    """Rows differ by orders of magnitude; errors stay those of 13 bits of each row, and of the weights."""
    conv = convolution(inputs, 40)
    x = torch.randn(1, inputs, *size) * torch.logspace(-4, 4, size[0])[:, None]
    chain = Chain(fixing, 40)
    image, fixed = chain.floats(inputs), chain.floats(inputs, compact=True)
    chain.copy(image)
    chain.fix(image, Place(fixed))
    weights = pack_floats(fixing, conv, [inputs], compact=True)
    chain.pointwise(weights, SINGLE_TO_FLOATS, fixed, {SLOPE: 0.25}, floats=Place(chain.result))
    found = through(chain.run, x)
    weight, x = conv.weight.double(), x.double()
    wanted = nn.functional.leaky_relu(nn.functional.conv2d(x, weight, conv.bias.double()), 0.25)
    of_inputs = x.abs().amax(dim=(1, 3), keepdim=True) / 8191 * weight.abs().sum(dim=1).view(1, -1, 1, 1)
    of_weights = weight.abs().amax(dim=1).view(1, -1, 1, 1) / 4095 * x.abs().sum(dim=1, keepdim=True)
    most = (of_inputs + of_weights) / 2 * 1.01 + 1e-6  # and what is rounded twice, and the sums
    assert ((found - wanted).abs() <= most).all()


def test_the_largest_sums_in_fixed_point_fit(fixing: Kernel) -> None:
    """Whole numbers come out exactly: scales are 1, and sums just below 2^31."""
    conv = nn.Conv2d(64, 32, 1).requires_grad_(False)
    conv.weight[:], conv.bias[:] = 4095.0, 0
    conv.weight[16:] *= -1
    x = torch.full((1, 64, 3, 7), 8191.0)
    x[:, :, 1], x[:, :, 2] = 0, -8191
    chain = Chain(fixing, 32)
    image, fixed = chain.floats(64), chain.floats(64, compact=True)
    chain.copy(image)
    chain.fix(image, Place(fixed))
    weights = pack_floats(fixing, conv, [64], compact=True)
    chain.pointwise(weights, SINGLE_TO_FLOATS, fixed, {SLOPE: 1}, floats=Place(chain.result))
    assert torch.equal(through(chain.run, x), conv.double()(x.double()).float())


@pytest.mark.parametrize("size", [(1, 5), (2, 33), (23, 40)])
@pytest.mark.parametrize("compact", [False, True])
def test_steps_in_turns_change_nothing(kernel: Kernel, size: tuple[int, int], compact: bool) -> None:
    if compact and not kernel.compact:
        pytest.skip("this form has no images of 16-bit numbers")
    convs = [pack_floats(kernel, convolution(48, 48), [48], compact=compact) for _ in range(3)]
    x = torch.randn(1, 48, *size)
    fixed = compact and kernel.form.compact == FIXED

    def run(*, turns: bool) -> torch.Tensor:
        chain = Chain(kernel, 48)
        images = [chain.floats(48, passing=turns, compact=compact) for _ in range(2)]
        written = chain.floats(48, passing=turns)
        if turns:
            chain.begin_group()
        chain.copy(written if fixed else images[0])
        for index, conv in enumerate(convs):
            if fixed:
                chain.fix(written, Place(images[index % 2]))
            to = chain.result if index == 2 else written if fixed else images[1 - index % 2]
            chain.pointwise(conv, SINGLE_TO_FLOATS, images[index % 2], {SLOPE: 0.5}, floats=Place(to))
        return through(chain.run, x)

    assert torch.equal(run(turns=True), run(turns=False))


def test_a_group_of_one_step_has_no_passing_images(kernel: Kernel) -> None:
    """It takes all rows at once, and would write them past the image's end."""
    chain = Chain(kernel, 16)
    image = chain.floats(16, passing=True)
    chain.begin_group()
    chain.copy(image)
    chain.begin_group()
    weights = pack_floats(kernel, convolution(16, 16), [16])
    chain.pointwise(weights, SINGLE_TO_FLOATS, image, {SLOPE: 1}, floats=Place(chain.result))
    with pytest.raises(ValueError, match="all rows at once"):
        chain.run(np.zeros((20, 5, 16), np.float32))
