"""The interface of what upscales tiles."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class TileRunner(Protocol):
    """Upscales tiles: a simulated model (`cabm.upscaling.torch_runners`) or `cabm.engine.IntegerModel`.

    Attributes:
        scale: scale factor.
        in_batches: whether the runner is fastest on batches of tiles of one shape. Otherwise it gets one
            tile at a time, from several threads at once.
        splits_border: whether tiles at the image's border take another computation than tiles inside it, so
            that a batch must not mix them.
    """

    scale: int
    in_batches: bool = True
    splits_border: bool = False

    def __call__(
        self, tiles: np.ndarray, bits: np.ndarray | None, *, inside: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Upscale tiles of one shape.

        Args:
            tiles: (n,3,h,w), uint8 or float32, in 0..255; often a part of larger tiles, not contiguous.
            bits: (n,L) int64 bits of each tile; None for models that take none.
            inside: no tile touches the image's border.

        Returns:
            (n,3,h*scale,w*scale) in 0..255, which the caller may overwrite: float32, or rounded to uint8
            if the tiles are uint8. In any order in memory; channels last are fastest. And the bits that
            were used, (n,L) int64 or None.
        """
        ...
