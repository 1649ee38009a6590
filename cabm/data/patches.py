"""Random training patches from a packed store, as a pure function of seed and step."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cabm.data.store import PackedStore
from cabm.errors import InputError

Batch = tuple[Tensor, Tensor]


class Sampler(Protocol):
    """Yields batches as a pure function of the step, so that resuming needs no sampler state."""

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return lr (B, 3, p, p) and hr (B, 3, p * scale, p * scale), uint8."""
        ...


class PatchSampler:
    """Draws batches of aligned low- and high-resolution patches.

    All patch positions of all images are equally likely, or all rows of ``positions`` if given. With
    ``augment``, each pair is transformed by one of the eight symmetries of the square, all equally likely.

    A batch depends only on the seed and the step (a counter-based generator), so training resumes exactly,
    and processes share a batch without communication.
    """

    def __init__(
        self,
        store: PackedStore,
        *,
        batch_size: int,
        lr_patch: int,
        seed: int,
        augment: bool = True,
        positions: np.ndarray | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Count the positions, without reading pixels.

        Args:
            store: the image pairs.
            batch_size: patches per batch, over all processes.
            lr_patch: side of a low-resolution patch in pixels.
            seed: 0 or more.
            augment: apply random flips and rotations.
            positions: (N, 3) integers: image, top row, left column in low-resolution pixels.
            rank: share of the batch to return, 0..world - 1.
            world: number of equal shares of a batch.

        Raises:
            InputError: all images are smaller than a patch, a position is outside its image, or the batch
                size is not a multiple of ``world``.
        """
        assert batch_size >= 1 and lr_patch >= 1 and seed >= 0 and 0 <= rank < world
        if batch_size % world:
            raise InputError(
                f"a batch of {batch_size} patches cannot be shared by {world} processes;"
                f" use a multiple of {world}"
            )
        self.store = store
        self.batch_size = batch_size
        self.lr_patch = lr_patch
        self.seed = seed
        self.augment = augment
        self._shard = slice(rank * batch_size // world, (rank + 1) * batch_size // world)

        shapes = np.array([store.lr_shape(i) for i in range(len(store))], np.int64)
        self._grid = np.maximum(shapes - lr_patch + 1, 0)
        self._ends = np.cumsum(self._grid.prod(axis=1))
        if self._ends[-1] == 0:
            raise InputError(
                f"{store.directory}: no image is as large as a patch of {lr_patch}x{lr_patch}"
                f" low-resolution pixels (the largest has {shapes.min(axis=1).max()});"
                " use a smaller patch or larger images"
            )
        self._positions = positions
        if positions is not None:
            self._check_positions(positions)

    @property
    def num_positions(self) -> int:
        """Number of different patches, without augmentation."""
        return int(self._ends[-1]) if self._positions is None else len(self._positions)

    def batch(self, step: int) -> Batch:
        """Return the patches of one step.

        Args:
            step: 0 or more.

        Returns:
            lr (B, 3, p, p) and hr (B, 3, p * scale, p * scale), uint8 RGB in 0..255; B is the batch size
            divided by ``world``.
        """
        images, tops, lefts, symmetries = (a[self._shard] for a in self.draw(step))
        scale, patch = self.store.scale, self.lr_patch
        lr = np.empty((len(images), 3, patch, patch), np.uint8)
        hr = np.empty((len(images), 3, patch * scale, patch * scale), np.uint8)
        for row, (image, top, left, symmetry) in enumerate(
            zip(images.tolist(), tops.tolist(), lefts.tolist(), symmetries.tolist(), strict=True)
        ):
            _copy(lr[row], self.store.lr(image), top, left, symmetry)
            _copy(hr[row], self.store.hr(image), top * scale, left * scale, symmetry)
        return torch.from_numpy(lr), torch.from_numpy(hr)

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return image, top, left (low-resolution pixels) and symmetry (0..7) of the whole batch."""
        generator = np.random.Philox(key=self.seed, counter=[0, 0, 0, step])
        # NumPy guarantees the stream of raw words, but not that of Generator's methods. The modulo is
        # biased by less than 2**-30 for any data set that fits on a disk.
        raw = generator.random_raw(2 * self.batch_size)
        chosen = (raw[: self.batch_size] % np.uint64(self.num_positions)).astype(np.int64)
        symmetry = (raw[self.batch_size :] >> np.uint64(61)).astype(np.int64)
        if not self.augment:
            symmetry[:] = 0
        if self._positions is not None:
            images, tops, lefts = np.asarray(self._positions[chosen], np.int64).T
            return images, tops, lefts, symmetry
        images = np.searchsorted(self._ends, chosen, side="right")
        columns = self._grid[images, 1]
        within = chosen - (self._ends[images] - self._grid[images].prod(axis=1))
        return images, within // columns, within % columns, symmetry

    def _check_positions(self, positions: np.ndarray) -> None:
        if positions.ndim != 2 or positions.shape[1] != 3 or positions.dtype.kind not in "iu":
            raise InputError(
                f"positions have shape {positions.shape} and type {positions.dtype}, not (N, 3) integers;"
                " run the prepare stage again"
            )
        if len(positions) == 0:
            raise InputError(
                f"{self.store.directory}: no positions to sample from; run the prepare stage again"
            )
        for first in range(0, len(positions), 1 << 20):
            image, top, left = positions[first : first + (1 << 20)].T.astype(np.int64)
            inside = (image >= 0) & (image < len(self.store)) & (top >= 0) & (left >= 0)
            rows, columns = self._grid[np.where(inside, image, 0)].T
            if not (inside & (top < rows) & (left < columns)).all():
                raise InputError(
                    f"{self.store.directory}: a sampling position is outside its image for"
                    f" patches of {self.lr_patch}; run the prepare stage again"
                )


def _copy(target: np.ndarray, image: np.ndarray, top: int, left: int, symmetry: int) -> None:
    """Copy a patch of (H, W, 3) to the (3, p, p) target, transformed by one of the 8 symmetries."""
    size = target.shape[1]
    patch = image[top : top + size, left : left + size].transpose(2, 0, 1)
    if symmetry & 1:
        patch = patch[:, :, ::-1]
    if symmetry & 2:
        patch = patch[:, ::-1]
    if symmetry & 4:
        patch = patch.transpose(0, 2, 1)
    np.copyto(target, patch)
