"""Quality of the weights during training, on the validation images."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from cabm.data.store import PackedStore
from cabm.evaluation.store import check_measurable, evaluate_store, mean_bits
from cabm.models import Backbone
from cabm.project.sections import EvaluateSettings
from cabm.tables.table import EdgeToBitTable
from cabm.training.group import ALONE, Group
from cabm.upscaling.tiles import TiledResult, super_resolve
from cabm.upscaling.torch_runners import ModelRunner


class Validation:
    """Measures weights on the validation images, in tiles like the stage `evaluate`.

    Args:
        store: validation images.
        model: the model in training, which is copied.
        table: edge-to-bit table, for CABM models.
        settings: tile and stride.
        autocast: type that convolutions compute in.
        group: the processes that share the images.
    """

    def __init__(
        self,
        store: PackedStore,
        model: Backbone,
        table: EdgeToBitTable | None,
        settings: EvaluateSettings,
        autocast: torch.dtype | None,
        group: Group = ALONE,
    ) -> None:
        check_measurable(store)  # before the training, not at the first validation
        self.store = store
        self.table = table
        self.settings = settings
        self.group = group
        self.runner = ModelRunner(copy.deepcopy(model), autocast, collapse_tail=True)

    def measure(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the means ``psnr`` (dB), ``ssim`` and, for models with bits, ``fab`` (bits).

        All processes return the same values.
        """
        self.runner.model.load_state_dict(weights)
        own = range(self.group.rank, len(self.store), self.group.size)
        rows = []
        for index, image in zip(own, evaluate_store(self.store, self._upscale, images=own), strict=True):
            bits, bypassed = image.result.bits, image.result.bypassed
            tiles = None if bits is None else (bits.tolist(), bypassed.tolist())
            rows.append((index, image.psnr, image.ssim, tiles))
        # in the order of a single process, so that the means have the same bits
        rows = sorted(chain.from_iterable(self.group.gather(rows)), key=itemgetter(0))
        _, psnr, ssim, tiles = zip(*rows, strict=True)
        tiles = [(np.array(bits), np.array(bypassed)) for bits, bypassed in filter(None, tiles)]
        means = {"psnr": float(np.mean(psnr)), "ssim": float(np.mean(ssim))}
        means |= mean_bits([bits for bits, _ in tiles], [bypassed for _, bypassed in tiles])
        return {name: value for name, value in means.items() if name in ("psnr", "ssim", "fab")}

    def _upscale(self, image: np.ndarray) -> TiledResult:
        return super_resolve(
            self.runner,
            image,
            table=self.table,
            tile=self.settings.tile,
            stride=self.settings.stride,
            size_multiple=self.runner.model.size_multiple,
        )
