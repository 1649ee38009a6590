"""The cost of a model: feature average bits (FAB) and bit operations (BitOPs)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike

from cabm.tiling.plan import TilePlan

_FLOAT_BITS = 32

Convention = Literal["tile", "image"]


class CostedLayer(Protocol):
    """The facts about a layer that its cost depends on."""

    @property
    def macs_per_pixel(self) -> float:
        """Multiply-accumulate operations per low-resolution pixel."""

    @property
    def adaptive(self) -> bool:
        """Whether its activation bits come from the search space."""

    @property
    def fixed_bits(self) -> int:
        """Activation bits of a layer that is not adaptive: 8, or 32 if it stays in float."""


def fab(bits: ArrayLike) -> float:
    """Return the feature average bits: the mean over adaptive layers and the tiles that are computed.

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
    computed: ArrayLike | float = 1.0,
) -> float:
    """Return the bit operations of one image: the sum of MACs x weight bits x activation bits.

    Only the network is counted. The bicubic upscaling of bypassed parts costs less than 0.1 % of it.

    Args:
        layers: all layers of the network, in order. Float layers count 32 x 32 bits.
        bits: (N, L) activation bits of the L adaptive layers for the N tiles of the plan, or (L,) for all
            tiles; None for the float network, where every layer counts 32 x 32 bits.
        tile_plan: the tiles of the image; a single tile if it is upscaled whole.
        convention: "tile" counts all pixels of every tile, overlaps included: the work that is done.
            "image" counts each pixel of the image once, with the bits of the tile that it belongs to.
        weight_bits: bits of the weights of quantized layers; "same": those of the activations, as in the
            paper (the released code keeps 8).
        computed: (N,) pixels of each tile that the network computes, relative to the tile: 0..1.

    Raises:
        ValueError: the bits do not fit the layers and tiles, or the convention is unknown.
    """
    macs = np.array([layer.macs_per_pixel for layer in layers], dtype=np.float64)
    adaptive = np.array([layer.adaptive for layer in layers], dtype=bool)
    num_tiles, num_adaptive = tile_plan.num_tiles, int(adaptive.sum())
    if convention == "tile":
        areas = np.full(num_tiles, float(tile_plan.tile_height * tile_plan.tile_width))
    elif convention == "image":
        areas = tile_plan.owned_areas
    else:
        raise ValueError(f"convention {convention!r}: choose 'tile' or 'image'")
    if bits is None:
        return float(areas.sum() * macs.sum() * _FLOAT_BITS**2)
    bits = np.asarray(bits)
    if bits.shape not in [(num_tiles, num_adaptive), (num_adaptive,)]:
        raise ValueError(f"bits {bits.shape} for {num_tiles} tiles of {num_adaptive} adaptive layers")

    activations = np.empty((num_tiles, len(layers)))
    activations[:] = [layer.fixed_bits for layer in layers]
    activations[:, adaptive] = bits
    weights = activations if weight_bits == "same" else np.full_like(activations, weight_bits)
    weights = np.where(activations == _FLOAT_BITS, _FLOAT_BITS, weights)
    return float(np.sum((activations * weights) @ macs * areas * np.asarray(computed)))
