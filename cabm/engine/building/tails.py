"""Tails that run by PyTorch, where this CPU compiles none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cabm.engine.float_conv import FloatConv
from cabm.engine.programs import Tail
from cabm.engine.tensors import as_array, as_tensor


class TorchTail(Tail):
    """A tail, and before it the last convolution of the body.

    Args:
        tail: takes the features (1,n,h,w) and the image (1,3,h,w), and returns the upscaled image.
        body_end: the convolution, to which what the body reads is added; None: the features are the body's.
        mean: (1,3,1,1) added to the result; None: nothing is.
    """

    def __init__(
        self,
        tail: Callable[[Tensor, Tensor], Tensor],
        body_end: FloatConv | None = None,
        mean: Tensor | None = None,
    ) -> None:
        self._tail, self._body_end, self._mean = tail, body_end, mean

    @torch.inference_mode()
    def __call__(self, hidden: np.ndarray, head: np.ndarray, x: np.ndarray) -> np.ndarray:
        """See `Tail`."""
        feature = as_tensor(hidden)
        if self._body_end is not None:
            feature = self._body_end(feature).float().add_(as_tensor(head))
        result = self._tail(feature, as_tensor(x))
        return as_array(result if self._mean is None else result.add_(self._mean))
