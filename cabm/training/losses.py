"""Losses of the training steps: L1, distillation by attention transfer, and the bit loss of CADyQ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cabm.models.base import Backbone, SROutput
from cabm.tiling.contrast import limit_contrast


class _MeanSquare(torch.autograd.Function):
    """Mean over channels of the square, in one pass forward and one backward; autograd takes six."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor) -> Tensor:
        ctx.save_for_backward(feature)
        norm = torch.linalg.vector_norm(
            feature, dim=1, dtype=torch.promote_types(feature.dtype, torch.float32)
        )
        return norm.square_().div_(feature.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (feature,) = ctx.saved_tensors
        return feature * (grad * (2 / feature.shape[1])).unsqueeze(1).to(feature.dtype)


def attention_map(feature: Tensor) -> Tensor:
    """Return the spatial attention of a feature: the mean over channels of its square, at unit length.

    Args:
        feature: (B,C,h,w).

    Returns:
        (B,h*w) float32 of unit length (Zagoruyko and Komodakis, attention transfer).
    """
    return F.normalize(_MeanSquare.apply(feature).flatten(1), dim=1)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the attention maps of two features (B,C,h,w)."""
    return (attention_map(student) - attention_map(teacher.detach())).square().mean()


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms besides L1.

    Attributes:
        output: weight of the L1 distance to the teacher's image.
        feature: weight of the attention transfer of the tail's input (w_kd; 1000 in the release).
        blocks: weight of the sum of the blocks' attention transfers (0.1 w_kd).
        bits: weight of the bit loss at step 0 (w0).
        bits_per_step: increase of that weight per step.
        border: number of outermost output pixels left out of both L1 terms.
    """

    output: float = 0.0
    feature: float = 0.0
    blocks: float = 0.0
    bits: float = 0.0
    bits_per_step: float = 0.0
    border: int = 0

    @property
    def distils(self) -> bool:
        """Whether a term needs a teacher."""
        return bool(self.output or self.feature or self.blocks)


@dataclass(frozen=True)
class Objective:
    """Computes the loss of a batch.

    Attributes:
        weights: weights of the terms.
        teacher: model to distil from; required if a distillation weight is not 0.
        bits: returns the student's bits (B,L) for a low-resolution batch (B,3,h,w) in 0..255 (CABM).
        shares: number of equal shares of the batch, one per process. A call sees one share; the means of
            loss, parts and gradients over the shares are those of the whole batch.
        contrast_limit: highest contrast of the patches that enter the student, see `limit_contrast`; its
            images are restored before they are compared. None: no limit.
    """

    weights: LossWeights
    teacher: Backbone | None = None
    bits: Callable[[Tensor], Tensor] | None = None
    shares: int = 1
    contrast_limit: float | None = None

    def __call__(
        self, model: Backbone, low_resolution: Tensor, high_resolution: Tensor, step: int
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Return the loss to minimise, and its terms and the FAB as numbers.

        Args:
            model: the student.
            low_resolution: (B,3,h,w) in 0..255.
            high_resolution: (B,3,h*scale,w*scale) in 0..255.
            step: number of the step, from 0, for the weight of the bit loss.
        """
        bits = None if self.bits is None else self.bits(low_resolution)
        collapse = model.tail_border is not None and self.weights.border >= model.tail_border
        output = self._run(model, low_resolution, bits, collapse)
        terms = {"l1": self._l1(output.sr, high_resolution)}
        if self.teacher is not None and self.weights.distils:
            terms |= self._distillation(output, low_resolution, collapse)
        parts: dict[str, float] = {}
        if output.bit_cost is not None:
            weight = self.weights.bits + self.weights.bits_per_step * step
            # a sum over the batch, unlike the other terms, which are means
            terms["bits"] = weight * self.shares * output.bit_cost.sum()
        if output.bits is not None:
            parts["fab"] = output.bits.double().mean().item()
        total = torch.stack(list(terms.values())).sum()
        parts |= {name: term.item() for name, term in terms.items()}
        return total, parts

    def _run(self, model: Backbone, tiles: Tensor, bits: Tensor | None, collapse: bool) -> SROutput:
        if self.contrast_limit is None:
            return model(tiles, bits, collapse_tail=collapse)
        limited = limit_contrast(tiles.float(), self.contrast_limit)
        pixels = limited.pixels.contiguous(memory_format=torch.channels_last)
        output = model(pixels, bits, collapse_tail=collapse)
        return replace(output, sr=limited.restore(output.sr.float()))

    def _distillation(self, output: SROutput, low_resolution: Tensor, collapse: bool) -> dict[str, Tensor]:
        with torch.no_grad():
            target = self.teacher(low_resolution, collapse_tail=collapse)
        terms = {}
        if self.weights.output:
            terms["output"] = self.weights.output * self._l1(output.sr, target.sr)
        if self.weights.feature:
            terms["feature"] = self.weights.feature * attention_transfer(output.feature, target.feature)
        if self.weights.blocks:
            pairs = zip(output.block_features, target.block_features, strict=True)
            losses = [attention_transfer(student, teacher) for student, teacher in pairs]
            terms["blocks"] = self.weights.blocks * torch.stack(losses).sum()
        return terms

    def _l1(self, image: Tensor, target: Tensor) -> Tensor:
        crop = slice(self.weights.border, -self.weights.border or None)
        return F.l1_loss(image.float()[..., crop, crop], target.float()[..., crop, crop])
