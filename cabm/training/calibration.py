"""Initial clip values of the quantizers, measured on training patches."""

from __future__ import annotations

import math
from typing import Literal

import torch

from cabm.data.patches import Sampler
from cabm.errors import TrainingDiverged
from cabm.models.base import Backbone
from cabm.quant import AlphaObserver

Calibration = Literal["peak", "error"]
MIN_ALPHA = 1e-6


def calibrate(
    model: Backbone,
    sampler: Sampler,
    batches: int,
    only: set[str] | None = None,
    method: Calibration = "peak",
) -> dict[str, list[float]]:
    """Set clip values alpha from data.

    Args:
        model: a quantized model; its activations are not quantized meanwhile.
        sampler: source of the batches.
        batches: number of batches.
        only: names of the alpha parameters to set; all by default.
        method: ``peak``: the mean over samples of max|x|, for every width (as in the release of PAMS);
            ``error``: for each width, the value with the least squared quantization error.

    Returns:
        The clip values by parameter name, one per width.

    Raises:
        TrainingDiverged: an activation is zero or not finite on all batches.
    """
    observer = AlphaObserver()
    with torch.no_grad():
        for step in range(batches):
            model(sampler.batch(step)[0].float(), observer=observer)
    found = {}
    names = {module: f"{name}.alpha" for name, module in model.named_modules()}
    for quantizer in observer.modules():
        name = names[quantizer]
        if only is not None and name not in only:
            continue
        peak = observer.mean_peak(quantizer)
        if not math.isfinite(peak) or peak <= MIN_ALPHA:
            raise TrainingDiverged(f"calibration of {name}: mean max|x| is {peak}")
        alphas = [
            peak if method == "peak" else max(MIN_ALPHA, observer.least_error_alpha(quantizer, levels))
            for levels in quantizer.levels.tolist()
        ]
        with torch.no_grad():
            quantizer.alpha.copy_(torch.tensor(alphas))
        found[name] = alphas
    return found
