"""The base class of backbones: their forward pass, and what they state about themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cabm.errors import InputError
from cabm.models.facts import ModelFacts, QuantizedLayer
from cabm.quant import AlphaObserver, PrecisionContext, Quantizers
from cabm.quant.kinds import Precision
from cabm.quant.layers import QuantConv2d, QuantConvTranspose2d
from cabm.quant.levels import PAMS_BITS

UPSAMPLE_FACTORS = {2: (2,), 3: (3,), 4: (2, 2)}
RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K in 0..1, as in the released EDSR


@dataclass
class SROutput:
    """Result of a forward pass.

    Attributes:
        sr: (B,3,h*scale,w*scale) in 0..255, not rounded or clipped.
        feature: (B,n,h,w) input of the tail, for distillation.
        block_features: a feature (B,n,h,w) of each block, for distillation.
        bits: (B,L) bits used at the adaptive positions; None for float and PAMS models.
        bit_cost: (B,L) terms of CADyQ's bit loss; None for the other kinds.
    """

    sr: Tensor
    feature: Tensor
    block_features: list[Tensor]
    bits: Tensor | None = None
    bit_cost: Tensor | None = None


def image_gradient(x: Tensor) -> Tensor:
    """Return the mean |Sobel gradient| of the grayscale image in x and y, without gradient.

    Args:
        x: (B,3,h,w) in 0..255.

    Returns:
        (B,2), measured on the image in 0..1 with kornia's normalized Sobel kernel (CADyQ, section 3.2).
    """
    # only selectors need kornia; models with a table start faster without it
    from kornia.color import rgb_to_grayscale
    from kornia.filters import spatial_gradient

    gray = rgb_to_grayscale(x.detach().float() / 255)
    return spatial_gradient(gray).abs().mean(dim=(1, 3, 4))


class Backbone(nn.Module):
    """A super-resolution network that does not know about quantization methods.

    Subclasses take quantizers and convolutions from ``self.quantizers``, list their convolutions with
    `add_layer` and implement `run`.

    Args:
        scale: upscaling factor.
        precision: how the quantized positions compute.
        options: the other constructor arguments, with which the network can be built again.

    Attributes:
        scale, precision, options: as above.
        layers: all convolutions in the order of execution.
        receptive_field: distance in low-resolution pixels up to which an input affects an output.
        size_multiple: heights and widths of inputs must be multiples of this.
        gradient_scale: factor on the image gradient that selectors see: 1000, for CARN 1, as released.
        tail_border: width in output pixels of the border where a collapsed tail gives other values; None if
            the tail cannot collapse.
    """

    name: ClassVar[str]
    gradient_scale: ClassVar[float] = 1000.0
    size_multiple: ClassVar[int] = 1
    tail_border: int | None = None

    def __init__(self, scale: int, precision: Precision, options: dict[str, Any]) -> None:
        super().__init__()
        self.scale = scale
        self.precision = precision
        self.options = options
        self.quantizers = Quantizers(precision)
        self.layers: list[QuantizedLayer] = []
        self.receptive_field = 0

    def add_layer(self, name: str, *, grid: int = 1, adaptive: bool = False) -> None:
        """Append a convolution to `layers`.

        Args:
            name: its module path.
            grid: samples per low-resolution pixel along one axis, where the convolution runs (a transposed
                one: where it reads).
            adaptive: whether the bits of its input come from the search space.
        """
        conv = self.get_submodule(name)
        quantized = isinstance(conv, QuantConv2d | QuantConvTranspose2d)
        fixed_bits = PAMS_BITS if quantized and not adaptive else 32
        self.layers.append(QuantizedLayer(name, conv.weight.numel() * grid**2, adaptive, fixed_bits))

    def add_upsampling(self, factors: Sequence[int]) -> None:
        """Append the convolutions ``upsample.0``, ``upsample.1``, ... and ``tail`` to `layers`.

        Args:
            factors: of the PixelShuffle after each convolution except the last.
        """
        grid = 1
        for index, factor in enumerate(factors):
            self.add_layer(f"upsample.{index}", grid=grid)
            grid *= factor
        self.add_layer("tail", grid=grid)

    @property
    def num_adaptive(self) -> int:
        """Number of adaptive positions, L."""
        return self.quantizers.num_adaptive

    @property
    def facts(self) -> ModelFacts:
        """What is known of the model without its weights."""
        return ModelFacts(
            name=self.name,
            scale=self.scale,
            precision=self.precision,
            layers=tuple(self.layers),
            size_multiple=self.size_multiple,
            receptive_field=self.receptive_field,
        )

    def forward(
        self,
        x: Tensor,
        bits: Tensor | None = None,
        *,
        observer: AlphaObserver | None = None,
        collapse_tail: bool = False,
    ) -> SROutput:
        """Upscale a batch.

        Args:
            x: (B,3,h,w) in 0..255.
            bits: (B,L) integer widths from the search space; required by CABM models, and only by them.
            observer: records calibration statistics; activations then stay unquantized.
            collapse_tail: allow a linear tail to run as one convolution, which changes the outermost
                ``tail_border`` output pixels.

        Raises:
            ValueError: ``bits`` are missing, unexpected, of another shape, or not in the search space.
        """
        if (bits is not None) != (self.precision.kind == "cabm") and observer is None:
            wanted = "needs" if self.precision.kind == "cabm" else "takes no"
            raise ValueError(f"a {self.precision.kind} model {wanted} bits")
        if bits is not None and bits.shape != (x.shape[0], self.num_adaptive):
            raise ValueError(
                f"bits have the shape {tuple(bits.shape)}, expected {(x.shape[0], self.num_adaptive)}"
            )
        gradient = None
        if self.precision.kind == "cadyq":
            gradient = image_gradient(x) * self.gradient_scale
        context = PrecisionContext(gradient=gradient, bits=bits, observer=observer)
        output = self.run(x, context, collapse_tail=collapse_tail)
        if context.chosen:
            output.bits = torch.stack(context.chosen, dim=1)
        output.bit_cost = context.bit_cost()
        return output

    def run(self, x: Tensor, context: PrecisionContext, *, collapse_tail: bool) -> SROutput:
        """Run the network on (B,3,h,w) in 0..255; the quantizers read and fill ``context``."""
        raise NotImplementedError


def upsample_factors(scale: int) -> tuple[int, ...]:
    """Return the factors of the pixel shuffles that make up a scale (EDSR): x4 is x2 twice.

    Raises:
        InputError: the scale is not 2, 3 or 4.
    """
    if scale not in UPSAMPLE_FACTORS:
        raise InputError(f"model: no backbone upscales by {scale}; scale must be one of 2, 3, 4")
    return UPSAMPLE_FACTORS[scale]


def grid_reach(reaches: Sequence[int], factors: Sequence[int]) -> int:
    """Return how many low-resolution pixels convolutions and pixel shuffles in turn reach.

    Args:
        reaches: half the kernel width of each convolution, rounded down, first to last.
        factors: factor of the PixelShuffle after each convolution except the last.
    """
    total, grid = Fraction(0), 1
    for reach, factor in zip(reaches, [*factors, 1], strict=True):
        total += Fraction(reach, grid)
        grid *= factor
    return ceil(total)


def pixel_mean() -> Tensor:
    """Return `RGB_MEAN` in 0..255 as (1,3,1,1)."""
    # Python arithmetic: on the meta device, tensor arithmetic imports a compiler, which takes a second
    return torch.tensor([255 * value for value in RGB_MEAN]).view(1, 3, 1, 1)
