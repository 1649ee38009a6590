"""One small model per backbone, and what the parametrised tests do with it."""

from __future__ import annotations

import torch

from cabm.models import BACKBONES as REGISTRY
from cabm.models import Backbone, build_model
from cabm.quant import KINDS, Precision

# a row per backbone: constructor options that keep its tests fast
SMALL = {
    "edsr": {"num_features": 4, "num_blocks": 2},
    "srresnet": {"num_features": 4, "num_blocks": 2},
    "idn": {"num_features": 16, "num_blocks": 2, "num_distilled": 4},
    "carn": {"num_features": 4},
}
BACKBONES = sorted(SMALL)
SCALES = (2, 3, 4)

__all__ = ["BACKBONES", "KINDS", "REGISTRY", "SCALES", "SMALL", "randomise", "small_model"]


def small_model(
    backbone: str,
    *,
    kind: str = "float",
    scale: int = 2,
    search_space: tuple[int, ...] = (4, 6, 8),
    options: dict[str, object] | None = None,
    **precision: object,
) -> Backbone:
    """Build a backbone of a few thousand weights, the same ones at every call."""
    torch.manual_seed(0)
    wanted = SMALL[backbone] | (options or {})
    return build_model(backbone, scale, Precision(kind, search_space, **precision), wanted)


def randomise(model: Backbone, seed: int = 1) -> Backbone:
    """Give alphas, selectors and norms values that differ from their fresh ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.rand(value.shape, generator=generator)
            if name.endswith(("alpha", "running_var")):
                value.copy_(0.5 + noise)
            elif ".selector." in name:
                value.copy_(noise - 0.5)
            else:
                value.add_(0.02 * (noise - 0.5))
    return model
