"""What every backbone is and states about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cabm.errors import InputError
from cabm.quant import AlphaObserver, Precision, PrecisionContext, Quantizers
from cabm.quant.layers import QuantConv2d, QuantConvTranspose2d
from cabm.quant.precision import FIXED_BITS

UPSAMPLE_FACTORS = {2: (2,), 3: (3,), 4: (2, 2)}
RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, in 0..1 (EDSR)


@dataclass(frozen=True)
class QuantizedLayer:
    """A convolution of a backbone, as the bit counts see it.

    Attributes:
        name: module path of the convolution.
        macs_per_pixel: multiply-accumulates per pixel of the low-resolution input.
        adaptive: whether its input takes bits from the search space; adaptive layers stand in the
            order of the table's columns.
        fixed_bits: width of its input where it is not adaptive: 8, or 32 for float.
    """

    name: str
    macs_per_pixel: int
    adaptive: bool
    fixed_bits: int = 32


@dataclass
class SROutput:
    """What a forward pass returns.

    Attributes:
        sr: (B,3,h*scale,w*scale) in 0..255, not rounded or clipped.
        feature: (B,n,h,w) input of the tail, for distillation.
        block_features: per block (B,n,h,w), for distillation.
        bits: (B,L) bits used at the adaptive positions; None in float and PAMS models.
        bit_cost: (B,L) straight-through bits over their expectation (CADyQ's bit loss), else None.
    """

    sr: Tensor
    feature: Tensor
    block_features: list[Tensor]
    bits: Tensor | None = None
    bit_cost: Tensor | None = None


def image_gradient(x: Tensor) -> Tensor:
    """Mean |Sobel gradient| in x and y of the grayscale image, without gradient.

    Args:
        x: (B,3,h,w) in 0..255.

    Returns:
        (B,2), of the image in 0..1 (kornia's normalized Sobel; CADyQ, section 3.2).
    """
    # only selectors ask for it: what has a table starts without it
    from kornia.color import rgb_to_grayscale
    from kornia.filters import spatial_gradient

    gray = rgb_to_grayscale(x.detach().float() / 255)
    return spatial_gradient(gray).abs().mean(dim=(1, 3, 4))


class Backbone(nn.Module):
    """A super-resolution network that knows nothing of quantization methods.

    Subclasses build their modules from ``self.quantizers`` and implement `run`. They fill in:

    Attributes:
        scale: upscaling.
        layers: all convolutions in the order of execution, adaptive ones in the order of the table.
        receptive_field: how many low-resolution pixels away an input can reach an output.
        size_multiple: heights and widths must be multiples of this.
        gradient_scale: factor on the image gradient that selectors see (1000; CARN 1).
        tail_border: width in output pixels where a collapsed tail differs; None if it cannot collapse.
        options: constructor arguments that rebuild the same network.
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
        """Enter the convolution ``name`` into `layers`.

        Args:
            name: its module path.
            grid: side of the grid it runs on, in samples per low-resolution pixel (a transposed
                convolution: of the grid it reads).
            adaptive: whether its input takes bits from the search space.
        """
        conv = self.get_submodule(name)
        quantized = isinstance(conv, QuantConv2d | QuantConvTranspose2d)
        fixed_bits = FIXED_BITS if quantized and not adaptive else 32
        self.layers.append(QuantizedLayer(name, conv.weight.numel() * grid**2, adaptive, fixed_bits))

    @property
    def num_adaptive(self) -> int:
        """L, the number of adaptive positions."""
        return self.quantizers.num_adaptive

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the adaptive layers, in the order of the table's columns."""
        return tuple(layer.name for layer in self.layers if layer.adaptive)

    @property
    def table_fit(self) -> dict[str, Any]:
        """What a table must fit: the arguments of `cabm.tables.table.EdgeToBitTable.check`."""
        return {
            "backbone": self.name,
            "scale": self.scale,
            "layers": self.layer_names,
            "search_space": self.precision.search_space,
        }

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
            bits: (B,L) integer widths from the search space; for CABM models, and only for them.
            observer: run unquantized and record calibration statistics instead.
            collapse_tail: allow the linear tail to run as one convolution; the outermost ``tail_border``
                output pixels then differ.

        Raises:
            ValueError: ``bits`` are missing, not wanted, of another shape, or not in the search space.
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
        """Run the graph on (B,3,h,w) in 0..255 with the quantizers' ``context``."""
        raise NotImplementedError


def upsample_factors(scale: int) -> tuple[int, ...]:
    """Return the pixel shuffles that make up a scale (EDSR): x4 is x2 twice.

    Raises:
        InputError: the scale is not 2, 3 or 4.
    """
    if scale not in UPSAMPLE_FACTORS:
        raise InputError(f"model: no backbone upscales by {scale}; scale must be one of 2, 3, 4")
    return UPSAMPLE_FACTORS[scale]


def grid_reach(reaches: Sequence[int], factors: Sequence[int]) -> int:
    """How many low-resolution pixels the convolutions around pixel shuffles reach.

    Args:
        reaches: half width of each convolution's kernel, first to last.
        factors: r of the PixelShuffle after each but the last.
    """
    total, grid = Fraction(0), 1
    for reach, factor in zip(reaches, [*factors, 1], strict=True):
        total += Fraction(reach, grid)
        grid *= factor
    return ceil(total)


def pixel_mean() -> Tensor:
    """Return the training set's mean colour in 0..255 as (1,3,1,1)."""
    # plain numbers: tensor arithmetic on the meta device imports a compiler, a second at every start
    return torch.tensor([255 * value for value in RGB_MEAN]).view(1, 3, 1, 1)
