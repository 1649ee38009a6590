"""How much noise each width of each layer adds to a model's output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from cabm.data.patches import Sampler
from cabm.models import Backbone, build_model
from cabm.models.transfer import transfer_weights


@torch.inference_mode()
def layer_noise(
    model: Backbone, sampler: Sampler, batches: int, autocast: torch.dtype | None = None
) -> np.ndarray:
    """Measure the output noise of every width of every adaptive layer.

    Args:
        model: a CADyQ or CABM model; its selectors are not used.
        sampler: source of the patches.
        batches: number of batches.
        autocast: type that convolutions compute in; None: float32.

    Returns:
        (L, K) float64: mean squared difference, in levels of 0..255, between the output with this layer at
        this width and the output with every layer at the widest; 0 for the widest.
    """
    assigned = _with_assigned_bits(model)
    device = next(model.parameters()).device
    widths = assigned.precision.search_space
    widest = torch.full((assigned.num_adaptive,), widths[-1], device=device)
    noise = np.zeros((assigned.num_adaptive, len(widths)))

    def upscale(low: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            return assigned(low, bits.expand(len(low), -1), collapse_tail=True).sr.float()

    for step in range(batches):
        low = sampler.batch(step)[0].to(device, torch.float32).contiguous(memory_format=torch.channels_last)
        reference = upscale(low, widest)
        for layer in range(assigned.num_adaptive):
            for number, width in enumerate(widths[:-1]):
                bits = widest.clone()
                bits[layer] = width
                noise[layer, number] += (upscale(low, bits) - reference).square().mean().item()
    return noise / batches


def _with_assigned_bits(model: Backbone) -> Backbone:
    """Return a model of the same weights and clip values whose bits are given from outside."""
    assigned = build_model(model.name, model.scale, replace(model.precision, kind="cabm"), model.options)
    transfer_weights(model, assigned)
    device = next(model.parameters()).device
    return assigned.to(device, memory_format=torch.channels_last).eval()
