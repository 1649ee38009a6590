"""Small calibrated models and marks for the engine's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cabm.engine import compile_model, forms, fused, onednn
from cabm.engine.amx import permitted
from cabm.engine.compiling import PROGRAMS
from cabm.engine.ends import Ends
from cabm.engine.float_rows import Layer
from cabm.engine.fused import FloatWeights, Kernel
from cabm.engine.integer import IntegerModel
from cabm.engine.packing import Scaling
from cabm.engine.registers import Features
from cabm.engine.tensors import as_array, as_tensor
from cabm.machine import cpu
from cabm.models import Backbone, build_model
from cabm.quant import AlphaObserver, Precision

OPTIONS = {
    "edsr": {"num_features": 16, "num_blocks": 2},
    "srresnet": {"num_features": 16, "num_blocks": 2},
    "idn": {"num_features": 16, "num_blocks": 2, "num_distilled": 4},
    "carn": {"num_features": 16},
}
BACKBONES = sorted(OPTIONS)

needs_units = pytest.mark.skipif(not onednn.available()[0], reason=onednn.available()[1])

FORMS = {
    "matrix 512": ("amx-int8", forms.matrix),
    "direct 512": ("avx512vnni", lambda: forms.direct(16)),
    "winograd 512": ("avx512bw", lambda: forms.winograd(16)),
    "winograd 256": ("avx2", lambda: forms.winograd(8)),
    "direct 128": ("dotprod", lambda: forms.direct(4)),
}
"""The forms of the compiled layers: LLVM's name of the instructions, and the form."""


@cache
def compiled(name: str) -> Kernel:
    """Compile a form, or skip the test if this CPU lacks its instructions."""
    feature, form = FORMS[name]
    if not cpu.compiler_features().get(feature):
        pytest.skip(f"this CPU has no {feature}")
    if name.startswith("matrix") and not permitted():
        pytest.skip("the system does not permit AMX")
    return fused.compile_form(form())


def pack_floats(kernel: Kernel, conv: nn.Conv2d, parts: Sequence[int], **options: Any) -> FloatWeights:
    """Pack a 1x1 convolution."""
    weight, bias = conv.weight.detach()[:, :, 0, 0], conv.bias.detach()
    return kernel.pack_floats(weight.numpy(), bias.numpy(), parts, **options)


def layer_of(weight: Tensor, bias: Tensor, **ends: Any) -> Layer:
    """Return a layer of weights and biases given as tensors."""
    return Layer(weight.numpy(), bias.numpy(), **ends)


def weights_of(layer: Layer) -> tuple[Tensor, Tensor]:
    """Return the weights and biases of a layer as float64."""
    return torch.from_numpy(layer.weight).double(), torch.from_numpy(layer.bias).double()


def require_registers(features: Features, lanes: int) -> int:
    """Return ``lanes``, or skip the test if this CPU has no registers of so many float32."""
    known = cpu.compiler_features()
    if not any(map(known.get, features[lanes])):
        pytest.skip(f"this CPU has no {' or '.join(features[lanes])}")
    return lanes


def photograph(height: int, width: int, *, count: int = 1, seed: int = 0) -> Tensor:
    """Return smooth coloured noise (count,3,height,width) uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, height // 4 + 2, width // 4 + 2, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return smooth.clamp(0, 1).mul(255).round().to(torch.uint8)


CHOICES = {"skip": 8, "after_relu": "unsigned", "weight_granularity": "channel"}
"""The quantizer choices that were not released; each is tried alone and with the others."""


def calibrated(
    backbone: str,
    kind: str = "cabm",
    *,
    scale: int = 2,
    options: dict[str, object] | None = None,
    **precision: object,
) -> Backbone:
    """Build a small model with calibrated clip values and batch norms that are not the identity."""
    torch.manual_seed(0)
    wanted = OPTIONS[backbone] | (options or {})
    model = build_model(backbone, scale, Precision(kind, **precision), wanted)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(-0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.2, 2)
        observer = AlphaObserver()
        model.eval()(photograph(24, 24, count=2).float(), observer=observer)
        for quantizer in observer.modules():
            for index, levels in enumerate(quantizer.levels.tolist()):
                quantizer.alpha[index] = observer.least_error_alpha(quantizer, levels)
    return model


def row(model: Backbone, bits: int | str, count: int = 1) -> Tensor | None:
    """Return rows of bits (count,L): one width, or "mixed" widths that differ between samples."""
    if model.precision.kind in ("pams", "float"):
        return None
    shape = (count, model.num_adaptive)
    if bits == "mixed":
        generator = torch.Generator().manual_seed(1)
        widths = torch.tensor(model.precision.search_space)
        return widths[torch.randint(len(widths), shape, generator=generator)]
    return torch.full(shape, bits)


@torch.inference_mode()
def simulated(model: Backbone, tiles: Tensor, bits: Tensor | None) -> Tensor:
    """Return the fake-quantized model's result, float32."""
    return model(tiles.float(), bits).sr


def scaling(factors: Any, bias: Any = None) -> Scaling:
    """Return the scaling by numbers, or by arrays of them."""
    return Scaling(
        np.atleast_1d(np.asarray(factors, np.float32)),
        None if bias is None else np.atleast_1d(np.asarray(bias, np.float32)),
    )


def through(run: Callable[..., np.ndarray], x: Tensor, **images: Tensor) -> Tensor:
    """Call a function of images (h,w,C) with tensors (1,C,h,w)."""
    found = run(as_array(x), **{name: as_array(image) for name, image in images.items()})
    return as_tensor(found)


class Engine:
    """A compiled model that takes and returns tensors.

    Args:
        model: a backbone.
        ends: how float convolutions run; None: as the options say.
        options: of `compile_model`.
    """

    def __init__(self, model: Backbone, *, ends: Ends | None = None, **options: Any) -> None:
        if ends is None:
            self.compiled = compile_model(model, **options)
        else:
            with torch.no_grad():
                self.compiled = IntegerModel(PROGRAMS[model.name](model.eval(), ends), model.facts)
        self.program = self.compiled.program

    def run(self, tiles: Tensor, bits: Tensor | None = None, **options: Any) -> Tensor:
        """See `cabm.engine.IntegerModel.run`."""
        rows = None if bits is None else bits.numpy()
        return torch.from_numpy(self.compiled.run(tiles.numpy(), rows, **options))
