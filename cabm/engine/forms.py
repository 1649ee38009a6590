"""The forms of the compiled layers, and which of them this CPU runs.

| CPU | form |
|---|---|
| AMX | products of tiles of bytes |
| AVX512-VNNI | direct sums of byte products, in registers of 512 bits; or the next, see `choose_form` |
| NEON with dot products | direct sums of byte products, in registers of 128 bits |
| AVX-512BW, AVX-VNNI, AVX2 | integer Winograd, in registers of 512 or 256 bits |
| others | none |

All forms give the same codes, and take the same time at any width of the codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cabm.engine.layer_numbers import FIXED, FLOATING, ROUNDED
from cabm.machine.compiled import Loop
from cabm.machine.cpu import compiler_features

LARGEST_PRODUCT = 255 * 127
TAPS = 9

MANY = 64
"""With AVX512-VNNI, Winograd is faster from this number of channels on."""


@dataclass(frozen=True)
class Form:
    """One way to convolve in compiled layers.

    Attributes:
        name: ``matrix``, ``direct`` or ``winograd``, and the bits of its registers.
        lanes: 32-bit numbers per register.
        granule: images have a multiple of this number of channels.
        most_channels: convolutions have at most this many input channels, or sums could exceed 32 bits.
        offset: subtracted from the bytes of images before they are multiplied.
        pack: packs weights (O,I,3,3), given in whole numbers; O and I are multiples of the granule.
        pack_floats: packs float32 weights (O,I) of a 1x1 convolution.
        loop: makes the function to compile; see `cabm.engine.steps.step_loop`.
        compact: kind of the images of 16-bit numbers that its 1x1 convolutions read faster, `ROUNDED` or
            `FIXED`; `FLOATING` if it has none.
        pack_compact: the same for such images; also returns scales (O,) if they are `FIXED`.
        compact_granule: such images have a multiple of this number of channels.
    """

    name: str
    lanes: int
    granule: int
    most_channels: int
    offset: int
    pack: Callable[[np.ndarray], np.ndarray]
    pack_floats: Callable[[np.ndarray], np.ndarray]
    loop: Callable[[], Loop]
    compact: int = FLOATING
    pack_compact: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]] | None = None
    compact_granule: int = 0


def choose_form(*, wide: bool = False) -> Form | None:
    """Return the fastest form on this CPU; None if it runs none.

    Args:
        wide: all convolutions have `MANY` channels at least.

    Raises:
        ImportError: numba or llvmlite is missing or broken.
    """
    from cabm.engine import neon_ir

    features = compiler_features()
    has_512 = features.get("avx512bw") and features.get("avx512dq")
    if features.get("amx-int8") and has_512:
        from cabm.engine.amx import permitted

        if permitted():
            return matrix()
    choices = (
        ("avx512vnni", winograd if wide else direct, 16),
        ("dotprod", direct, neon_ir.LANES),
        ("avx512bw", winograd, 16),
        ("avx2", winograd, 8),
    )
    return next(
        (
            form(lanes)
            for feature, form, lanes in choices
            if features.get(feature) and (has_512 or lanes < 16)
        ),
        None,
    )


def matrix() -> Form:
    """Return the matrix form (AMX)."""
    from cabm.engine import amx, amx_ir, amx_pointwise, amx_pointwise_ir, pointwise, steps

    modules = amx, amx_ir, amx_pointwise, amx_pointwise_ir, pointwise
    loops = amx.run_layer, pointwise.run_pointwise, amx_pointwise.run_rounded
    lanes, scratch = amx_ir.LANES, (0, amx.SCRATCH)
    return Form(
        name="matrix 512",
        lanes=lanes,
        granule=amx_ir.LANES,
        most_channels=(2**31 - 1) // (TAPS * LARGEST_PRODUCT),
        offset=0,
        pack=amx.pack,
        pack_floats=lambda weight: pointwise.pack(weight, lanes),
        compact=ROUNDED,
        pack_compact=lambda weight: (amx_pointwise.pack(weight), None),
        compact_granule=amx_pointwise_ir.DEPTH,
        loop=lambda: steps.step_loop(
            *(*loops, lanes, 1, scratch, modules), spills=True, prepare=amx.prepare, end=amx.end
        ),
    )


def direct(lanes: int) -> Form:
    """Return the direct form (VNNI, or NEON with dot products)."""
    from cabm.engine import neon_ir, pointwise, steps, vnni, vnni_ir

    modules = pointwise, vnni, vnni_ir, neon_ir
    arm = lanes == neon_ir.LANES
    compact, run_compact = ({}, pointwise.run_pointwise) if arm else _fixed(lanes)
    loops = vnni.run_layer, pointwise.run_pointwise, run_compact
    return Form(
        name=f"direct {32 * lanes}",
        lanes=lanes,
        granule=16,
        most_channels=(2**31 - 1) // (TAPS * LARGEST_PRODUCT),
        offset=neon_ir.OFFSET if arm else 0,
        pack=lambda codes: vnni.pack(codes, lanes),
        pack_floats=lambda weight: pointwise.pack(weight, lanes),
        loop=lambda: steps.step_loop(*loops, lanes, 1, (0, vnni.SCRATCH), modules),
        **compact,
    )


def winograd(lanes: int) -> Form:
    """Return the Winograd form (AVX2 or AVX-512BW)."""
    from cabm.engine import pointwise, steps, winograd_ir
    from cabm.engine import winograd as loops

    group = winograd_ir.REGISTERS * lanes
    modules = loops, pointwise, winograd_ir
    scratch = loops.scratch_bytes(lanes)
    compact, run_compact = _fixed(lanes)
    pointwise_loops = pointwise.run_pointwise, run_compact
    return Form(
        name=f"winograd {32 * lanes}",
        lanes=lanes,
        granule=winograd_ir.CHUNK,
        most_channels=(2**31 - 1) // (TAPS * LARGEST_PRODUCT),
        offset=0,
        pack=lambda codes: loops.pack(codes, group),
        pack_floats=lambda weight: pointwise.pack(weight, lanes),
        loop=lambda: steps.step_loop(loops.run_layer, *pointwise_loops, lanes, 4, scratch, modules),
        **compact,
    )


def _fixed(lanes: int) -> tuple[dict[str, Any], Loop]:
    """Return a form's entries for images in fixed point, and the loop that convolves them."""
    from cabm.engine import fixed_pointwise

    entries = {
        "compact": FIXED,
        "pack_compact": lambda weight: fixed_pointwise.pack(weight, lanes),
        "compact_granule": fixed_pointwise.PART,
    }
    return entries, fixed_pointwise.run_fixed
