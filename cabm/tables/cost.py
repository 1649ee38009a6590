"""What a model costs: feature average bits (FAB) and bit operations (BitOPs)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike

from cabm.tiling.plan import TilePlan

_FLOAT_BITS = 32

Convention = Literal["patch", "image"]


class CostedLayer(Protocol):
    """What the cost of a layer is computed from."""

    @property
    def macs_per_pixel(self) -> float:
        """Multiply-accumulates per low-resolution pixel."""

    @property
    def adaptive(self) -> bool:
        """Whether its activation bits come from the search space."""

    @property
    def fixed_bits(self) -> int:
        """Activation bits where they do not: 8, or 32 for a layer that stays in float."""


def fab(bits: ArrayLike) -> float:
    """Feature average bits: the mean over adaptive positions and the tiles that enter the network.

    Args:
        bits: (N, L) or (L,); a row of zeros is a tile that is bypassed.

    Returns:
        Mean bits; 0 if every tile is bypassed.
    """
    bits = np.asarray(bits)
    computed = bits[bits > 0]
    return float(computed.mean()) if computed.size else 0.0


def bitops(
    layers: Sequence[CostedLayer],
    bits: ArrayLike | None,
    tile_plan: TilePlan,
    *,
    convention: Convention,
    weight_bits: int | Literal["same"] = 8,
    fixed_bits: int | None = None,
    float_macs_per_pixel: float = 0.0,
    computed: ArrayLike | None = None,
) -> float:
    """Bit operations of one image: sum of MACs x weight bits x activation bits.

    Only what the network computes is counted. (Bicubic, which stands in for what is bypassed, is not; it is
    below 1e-3 of any of these networks.)

    Args:
        layers: all layers of the network in order. A float one counts 32 x 32 bits.
        bits: (N, L) activation bits of the L adaptive layers, for the plan's N tiles; (L,) for all tiles
            alike; None for the float network, where every layer counts 32 x 32 bits.
        tile_plan: the tiles of the image; one tile as large as the image for whole-image inference.
        convention: "patch" counts every tile in full, overlaps and all: the work that is done. "image"
            counts every pixel of the image once, with the bits of the tile that it is taken from.
        weight_bits: of quantized layers; "same" as their activations (the paper's; the release keeps 8).
        fixed_bits: in place of what the layers state.
        float_macs_per_pixel: of work in float beside the layers.
        computed: (N,) share 0..1 of each tile's pixels that the network computes; None: all, but for tiles
            whose bits are all 0, which are bypassed.

    Raises:
        ValueError: the bits do not fit the layers and tiles, or an unknown convention.
    """
    macs = np.array([layer.macs_per_pixel for layer in layers], dtype=np.float64)
    adaptive = np.array([layer.adaptive for layer in layers], dtype=bool)
    num_tiles, width = tile_plan.num_tiles, int(adaptive.sum())
    if convention == "patch":
        areas = np.full(num_tiles, float(tile_plan.tile_height * tile_plan.tile_width))
    elif convention == "image":
        areas = tile_plan.owned_areas
    else:
        raise ValueError(f"convention {convention!r}: 'patch' or 'image'")
    if bits is None:
        return float(areas.sum() * (macs.sum() + float_macs_per_pixel) * _FLOAT_BITS**2)
    bits = np.asarray(bits)
    if bits.shape not in [(num_tiles, width), (width,)]:
        raise ValueError(f"bits {bits.shape} for {num_tiles} tiles of {width} adaptive layers")

    activations = np.empty((num_tiles, len(layers)))
    activations[:] = [fixed_bits or layer.fixed_bits for layer in layers]
    activations[:, adaptive] = bits
    weights = activations if weight_bits == "same" else np.full_like(activations, weight_bits)
    weights = np.where(activations == _FLOAT_BITS, _FLOAT_BITS, weights)
    if computed is None:
        computed = activations[:, adaptive].any(axis=1) if width else np.ones(num_tiles, dtype=bool)
    per_pixel = (activations * weights) @ macs + float_macs_per_pixel * _FLOAT_BITS**2
    return float(np.sum(per_pixel * areas * np.asarray(computed)))
