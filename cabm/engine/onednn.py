"""Convolutions on bytes with oneDNN; the only module that uses PyTorch's private quantized operators.

`torch.ops.onednn.qconv2d_pointwise` multiplies uint8 activations by int8 weights, accumulates in int32 and
writes bytes or floats, in one pass. The operator is private to PyTorch and needs units that not every CPU
has, so `available` first tests it on a small problem with a known result.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cabm.engine.elementwise import byte_type
from cabm.engine.grid import Grid, Storage
from cabm.engine.packing import Scaling
from cabm.machine.cpu import architecture, integer_units

_ANY_SIDE = 64  # pixels


class IntegerConv:
    """A convolution of uint8 activations by prepacked int8 weights.

    The packed weights do not depend on the activations' bit-width, so all bit rows share them.
    """

    def __init__(
        self,
        codes: np.ndarray,
        *,
        stride: tuple[int, ...] = (1, 1),
        padding: tuple[int, ...] = (0, 0),
        dilation: tuple[int, ...] = (1, 1),
        groups: int = 1,
        shifted: bool = False,
    ) -> None:
        """Pack the weights.

        Args:
            codes: (O,I/groups,k,k) whole numbers in -127..127, of any type.
            stride, padding, dilation, groups: as in `torch.nn.Conv2d`; padding counts as code 0.
            shifted: whether the input's code 0 is not byte 0. Other inputs work, too, but then each call
                packs the weights again, which takes as long as 200 pixels.
        """
        self._geometry = (list(stride), list(padding), list(dilation), groups)
        # only if given an input shape (any will do) does oneDNN pack the sums that correct for the shift
        shape = [1, codes.shape[1] * groups, _ANY_SIDE, _ANY_SIDE] if shifted else None
        self._packed = torch.ops.onednn.qconv_prepack.default(
            torch.from_numpy(codes.astype(np.int8)), torch.ones(1), 1.0, 0, *self._geometry, shape
        )

    def to_codes(self, x: Tensor, grid: Grid, scaling: Scaling, out: Grid) -> Tensor:
        """Convolve the codes ``x`` (N,I,H,W) of ``grid`` and quantize the result to ``out``.

        Clips to the range of ``out``, which for positive codes is also a ReLU. ``out`` must have a divisor.
        """
        assert out.zero == 0, "with a shift, oneDNN would round value / step + 128 twice"
        assert out.divisor is not None
        # Clip afterwards, in a pass over bytes: oneDNN would build a kernel per clip value, so one per
        # layer, width and tile shape. Bytes saturate where 8-bit codes end
        post_op = "relu" if out.low == 0 else "none"
        kind = torch.uint8 if out.unsigned else torch.int8
        codes = self._run(x, grid, scaling, float(out.divisor), kind, post_op)
        ends = torch.iinfo(kind)
        if out.levels < ends.max or ends.min < out.low < 0:
            codes.clamp_(out.low, out.levels)
        return codes.view(byte_type(out))

    def to_float(self, x: Tensor, grid: Grid, scaling: Scaling) -> Tensor:
        """Convolve the codes ``x`` (N,I,H,W) of ``grid`` to float32 values."""
        return self._run(x, grid, scaling, 1.0, torch.float32, "none")

    def _run(
        self,
        x: Tensor,
        grid: Grid,
        scaling: Scaling,
        divisor: float,
        dtype: torch.dtype,
        post_op: str,
    ) -> Tensor:
        factors = torch.from_numpy(scaling.factors)
        return torch.ops.onednn.qconv2d_pointwise.default(
            x,
            1.0,
            grid.zero,
            self._packed,
            factors,
            torch.zeros(len(factors), dtype=torch.int64),
            None if scaling.bias is None else torch.from_numpy(scaling.bias),
            *self._geometry,
            divisor,
            0,
            dtype,
            post_op,
            [],
            "",
        )


def pointwise_float_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve (N,I,H,W) float32 by (O,I,1,1) with oneDNN.

    PyTorch itself would call another library's matrix product, which takes twice the time on some CPUs.
    """
    return torch.mkldnn_convolution(x, weight, bias, [0, 0], [1, 1], [1, 1], 1)


@cache
def available() -> tuple[bool, str]:
    """Return whether this machine runs integer convolutions fast and correctly, and a one-line reason."""
    reason = _missing_units() or _failed_self_test()
    return reason is None, reason or "integer units found and tested"


def _missing_units() -> str | None:
    if architecture() not in ("x86_64", "amd64"):
        needed = "an x86-64 CPU, or ARM with dot products and a working numba"
        return f"the integer engine needs {needed}; this is {architecture() or 'unknown'}"
    if not integer_units():
        return (
            "this CPU has no integer matrix units (AVX512-VNNI, AVX-VNNI or AMX); "
            "without them the engine needs AVX2 and a working numba"
        )
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch is built without oneDNN"
    return None


def _failed_self_test() -> str | None:
    """Run the operators on extreme values, where units with 16-bit sums would saturate."""
    try:
        wrong = [name for name, ok in _self_test() if not ok]
    except Exception as error:  # a private operator may raise anything
        line = (str(error).splitlines() or [""])[0]
        return f"integer convolutions of torch {torch.__version__} fail ({type(error).__name__}: {line})"
    if wrong:
        return f"integer convolutions of torch {torch.__version__} are wrong ({', '.join(wrong)})"
    return None


def _self_test() -> list[tuple[str, bool]]:
    random = np.random.default_rng(0)
    codes = torch.from_numpy(random.integers(-127, 128, (16, 16, 3, 3), np.int32))
    codes[0], codes[1] = 127, -127
    numbers = torch.from_numpy(random.integers(0, 256, (2, 16, 5, 6), np.int32))
    numbers[1] = 255
    x = numbers.to(torch.uint8).contiguous(memory_format=torch.channels_last)
    bias = random.standard_normal(16, np.float32) * np.float32(1e4)
    scaling = Scaling(np.array([0.125], np.float32), bias)
    results = []
    for source in (Grid(127.0, 8, Storage.POSITIVE), Grid(127.0, 8, Storage.SHIFTED)):
        conv = IntegerConv(codes.numpy(), padding=(1, 1), shifted=source.zero != 0)
        exact = F.conv2d(x.double() - source.zero, codes.double(), padding=1)
        exact = exact * 0.125 + torch.from_numpy(bias).double().view(1, -1, 1, 1)
        off = (conv.to_float(x, source, scaling) - exact).abs() - 1e-6 * exact.abs()
        results.append((f"sums from zero {source.zero}", bool((off <= 1e-2).all())))
        outs = [Grid(127e3, 8, Storage.POSITIVE), Grid(127e3, 8, Storage.SIGNED)]
        outs.append(Grid(255e3, 8, Storage.POSITIVE, unsigned=True))
        for out in outs:
            wanted = (exact / float(out.scale)).round().clamp(out.low, out.levels)
            agree = _same(conv.to_codes(x, source, scaling, out), wanted)
            results.append(
                (f"{out.storage.name.lower()} codes to {out.levels} from zero {source.zero}", agree)
            )
    values, pointwise = x.float(), torch.from_numpy(random.standard_normal((4, 16, 1, 1), np.float32))
    off = pointwise_float_conv(values, pointwise, None) - F.conv2d(values.double(), pointwise.double())
    results.append(("float products", bool((off.abs() <= 1e-2).all())))
    return results


def _same(found: Tensor, wanted: Tensor) -> bool:
    """Whether codes agree, except for single steps at rounding ties."""
    difference = (found.double() - wanted).abs()
    return bool(difference.max() <= 1) and float((difference > 0).double().mean()) <= 1e-3
