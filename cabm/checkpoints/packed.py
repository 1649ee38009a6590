"""Packed weights: int8 codes for quantized convolutions, float16 for the other convolutions.

The file is a quarter of the float32 one. Clip values, biases and norms stay float32: they are few, and
the codes depend on them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cabm.errors import InputError
from cabm.models.base import Backbone
from cabm.quant.functional import weight_codes
from cabm.quant.layers import QuantConv2d, QuantConvTranspose2d

SCALE_SUFFIX = ".scale"


def pack_state(model: Backbone) -> dict[str, Tensor]:
    """Return a quantized model's state dict with each quantized weight as int8 codes and their scale.

    The scale of ``x.weight`` is stored as ``x.weight.scale``, (1,) float32 or one per output channel.

    Raises:
        InputError: ``weight_bits: same``. Such weights need codes of every width.
    """
    if model.precision.weight_bits == "same":
        raise InputError(
            "weights with weight_bits: same cannot be packed, they need codes of every width;"
            " pack a model with weight_bits: 8"
        )
    quantized = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, QuantConv2d | QuantConvTranspose2d)
    }
    packed = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        if name in quantized:
            module = quantized[name]
            codes, scale = weight_codes(value, module.weight_bits, per_channel=module.per_channel)
            packed[name] = codes.to(torch.int8)
            packed[name + SCALE_SUFFIX] = scale.flatten()
        elif value.is_floating_point() and value.dim() > 1:
            packed[name] = value.half()
        else:
            packed[name] = value
    return packed


def unpack_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the float32 state dict of packed weights, or of weights that were not packed.

    Quantizing the result gives the packed codes and scales again. float16 becomes float32; other tensors
    stay as they are.

    Raises:
        InputError: an int8 weight without positive scales, one or one per output channel, or with a code
            below -127.
    """
    state = {}
    for name, value in tensors.items():
        if name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in tensors:
            continue
        if value.dtype == torch.int8:
            scale = tensors.get(name + SCALE_SUFFIX)
            if scale is None or not _fits(scale, value) or not _is_positive(scale):
                raise InputError(
                    f"{name}: int8 codes need a positive {name + SCALE_SUFFIX}; copy the model again"
                )
            if bool((value == -128).any()):
                raise InputError(f"{name}: codes range from -127 to 127, found -128; copy the model again")
            parts = value.float().split(1) if len(scale) > 1 else [value.float()]
            steps = zip(parts, scale.tolist(), strict=True)
            value = torch.cat([part * _step_that_requantizes(part, step) for part, step in steps])
        elif value.dtype == torch.float16:
            value = value.float()
        state[name] = value
    return state


def _fits(scale: Tensor, codes: Tensor) -> bool:
    return codes.numel() > 0 and codes.dim() > 0 and scale.shape in ((1,), (len(codes),))


def _is_positive(scale: Tensor) -> bool:
    return bool(((scale > 0) & scale.isfinite()).all())


def _step_that_requantizes(codes: Tensor, scale: float) -> float:
    """Return a step s such that `weight_codes` of ``codes * s`` returns ``scale``.

    float32 rounding can move the scale by one step, so nearby values are tried.
    """
    largest = int(codes.abs().max())
    if largest == 0:
        return scale
    levels, wanted = np.float32(largest), np.float32(scale)
    guess = np.float32((float(wanted) * largest - 1e-8) / largest)  # weight_codes adds 1e-8
    down = up = guess
    for _ in range(4):
        for step in (down, up):
            if (levels * step + np.float32(1e-8)) / levels == wanted and step > 0:
                return float(step)
        down, up = np.nextafter(down, np.float32(0)), np.nextafter(up, np.float32(np.inf))
    return float(guess)
