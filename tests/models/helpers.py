"""One small model per backbone, and the checks of the parametrised tests.

A row in `SMALL` runs all of them on a new backbone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cabm.models import Backbone, SROutput, build_model
from cabm.quant import Precision, Quantized
from cabm.quant.layers import PamsActivation, QuantConv2d, QuantConvTranspose2d

# a row per backbone: constructor options that keep its tests fast
SMALL = {
    "edsr": {"num_features": 4, "num_blocks": 2},
    "srresnet": {"num_features": 4, "num_blocks": 2},
    "idn": {"num_features": 16, "num_blocks": 2, "num_distilled": 4},
    "carn": {"num_features": 8},  # with fewer, a dead ReLU cuts the cascade
}
BACKBONES = sorted(SMALL)
SCALES = (2, 3, 4)
SIZES = ((1, 5, 7), (2, 9, 6), (3, 8, 8))
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def small_model(
    backbone: str,
    *,
    kind: str = "float",
    scale: int = 2,
    search_space: tuple[int, ...] = (4, 6, 8),
    options: dict[str, object] | None = None,
    **precision: object,
) -> Backbone:
    """Build a backbone of a few thousand weights, the same ones at every call."""
    torch.manual_seed(0)
    wanted = SMALL.get(backbone, {}) | (options or {})
    return build_model(backbone, scale, Precision(kind, search_space, **precision), wanted)


def randomise(model: Backbone, seed: int = 1) -> Backbone:
    """Give alphas, selectors and norms values that differ from their fresh ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.rand(value.shape, generator=generator)
            if name.endswith(("alpha", "running_var")):
                value.copy_(0.5 + noise)
            elif ".selector." in name:
                value.copy_(noise - 0.5)
            else:
                value.add_(0.02 * (noise - 0.5))
    return model


def image(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return a random image (batch,3,height,width) in 0..255."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 255


def bits_for(model: Backbone, batch: int) -> Tensor | None:
    """Return bits (batch,L) where the model takes them; K samples see every width at every position."""
    if model.precision.kind != "cabm":
        return None
    widths = torch.tensor(model.precision.search_space)
    position = torch.arange(model.num_adaptive)
    return widths[(torch.arange(batch)[:, None] + position + position // 3) % len(widths)]


def calibrate(model: Backbone, x: Tensor, share: float = 0.5) -> Backbone:
    """Set every alpha to a share of the largest value that reaches it, the ones before being set."""

    def set_alpha(quantizer, inputs):
        spread = torch.linspace(1, 1.2, quantizer.alpha.numel())  # widths differ
        quantizer.alpha.copy_(share * inputs[0].abs().max() * spread)

    found = [module for module in model.modules() if hasattr(module, "alpha")]
    hooks = [module.register_forward_pre_hook(set_alpha) for module in found]
    with torch.no_grad():
        model(x, bits=bits_for(model, len(x)))
    for hook in hooks:
        hook.remove()
    return model


def check_shapes(model: Backbone, size: tuple[int, int, int]) -> SROutput:
    """Run the model on one size and hold the output to `SROutput`'s contract."""
    batch, height, width = size
    with torch.no_grad():
        output = model(image(*size), bits=bits_for(model, batch))
    assert output.sr.shape == (batch, 3, height * model.scale, width * model.scale)
    assert output.sr.dtype == torch.float32
    assert bool(output.sr.isfinite().all())
    assert output.feature.shape[0] == batch
    assert output.feature.shape[2:] == (height, width)
    assert output.block_features
    assert all(feature.shape[2:] == (height, width) for feature in output.block_features)
    if model.precision.kind in ("cadyq", "cabm"):
        assert output.bits.shape == (batch, model.num_adaptive)
        assert not output.bits.is_floating_point()
        assert set(output.bits.flatten().tolist()) <= set(model.precision.search_space)
    else:
        assert output.bits is None
    assert (output.bit_cost is None) == (model.precision.kind != "cadyq")
    return output


def check_gradients(model: Backbone) -> None:
    """Assert that one loss gives every parameter a gradient that is finite and not all zero."""
    x = image(6, 8, 9)
    calibrate(model.train(), x)
    if model.precision.kind == "cadyq":
        with torch.no_grad():  # even odds: a fresh selector is so sure that its gradient underflows
            for name, value in model.named_parameters():
                if ".selector." in name:
                    value.mul_(1e-6)
    output = model(x, bits=bits_for(model, 6))
    target = image(6, 8 * model.scale, 9 * model.scale, seed=1)
    loss = (output.sr - target).square().mean()
    if output.bit_cost is not None:
        loss = loss + 0.1 * output.bit_cost.sum()
    loss.backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, f"no gradient reaches {name}"
        assert bool(value.grad.isfinite().all()), name
        if name.endswith("alpha"):
            assert bool((value.grad != 0).all()), f"some width of {name} gets no gradient"
        else:
            assert bool((value.grad != 0).any()), f"the gradient of {name} is zero"


def check_layers(model: Backbone) -> None:
    """Assert that the layers are the convolutions, in order, with the MACs that they do."""
    names = {module: name for name, module in model.named_modules()}
    ran: list[tuple[str, float]] = []
    height, width = 6, 5

    def count(conv, inputs, output):
        read = inputs[0].codes if isinstance(inputs[0], Quantized) else inputs[0]
        # a transposed convolution multiplies per input pixel, the others per output pixel
        positions = read if isinstance(conv, nn.ConvTranspose2d) else output
        ran.append((names[conv], conv.weight.numel() * positions[0, 0].numel() / (height * width)))

    hooks = [module.register_forward_hook(count) for module in names if isinstance(module, CONVOLUTIONS)]
    with torch.no_grad():
        model(image(1, height, width), bits=bits_for(model, 1))
    for hook in hooks:
        hook.remove()
    assert [(layer.name, layer.macs_per_pixel) for layer in model.layers] == ran
    adaptive = sum(layer.adaptive for layer in model.layers)
    assert model.num_adaptive == adaptive == len(model.facts.layer_names)


def check_adaptive_positions(model: Backbone) -> None:
    """Assert that column i of the bits is what the i-th adaptive layer reads (CABM models)."""
    assert model.precision.kind == "cabm"
    bits = bits_for(model, 3)
    seen: dict[str, Tensor | int] = {}
    for layer in model.layers:
        conv = model.get_submodule(layer.name)

        def note(conv, inputs, name=layer.name):
            seen[name] = inputs[0].bits if isinstance(inputs[0], Quantized) else 32

        conv.register_forward_pre_hook(note)
    with torch.no_grad():
        model(image(3, 6, 5), bits=bits)
    for column, name in enumerate(model.facts.layer_names):
        assert torch.equal(seen[name], bits[:, column]), name
    for layer in model.layers:
        if not layer.adaptive:
            assert seen[layer.name] == layer.fixed_bits, layer.name


def averaging(model: Backbone) -> Backbone:
    """Make every convolution a mean of its inputs: no activation is cut off, every path stays open."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, CONVOLUTIONS):
                module.weight.fill_(1 / module.weight[0].numel())
                if module.bias is not None:
                    module.bias.zero_()
    return model.double().eval()


def reach_of(model: Backbone) -> int:
    """Measure by gradients how many low-resolution pixels away an input affects an output."""
    size = 2 * model.receptive_field + 7
    centre = size // 2
    x = torch.full((1, 3, size, size), 255.0, dtype=torch.float64, requires_grad=True)
    block = slice(centre * model.scale, (centre + 1) * model.scale)
    model(x).sr[..., block, block].sum().backward()
    touched = x.grad.abs().sum(dim=(0, 1)).nonzero() - centre
    return int(touched.abs().max())


def quantizers_of(model: Backbone) -> list[nn.Module]:
    """Return the 8-bit quantizers of the model."""
    return [module for module in model.modules() if isinstance(module, PamsActivation)]


def is_quantized(conv: nn.Module) -> bool:
    """Whether a convolution quantizes its weights."""
    return isinstance(conv, QuantConv2d | QuantConvTranspose2d)
