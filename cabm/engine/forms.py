"""The forms of the compiled residual blocks, and which of them this CPU runs.

| CPU | form |
|---|---|
| AMX | none: oneDNN's convolutions, layer by layer, use it and are faster |
| AVX512-VNNI, AVX-VNNI | direct sums of byte products, in registers of 512 or 256 bits |
| AVX-512BW, AVX2 | integer Winograd, in registers of 512 or 256 bits |
| others | none |

All forms give the same codes. Layers whose inputs and weights have few bits take less time with integer
Winograd, which multiplies them as bytes. The direct forms gain nothing from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cabm.machine.compiled import Loop
from cabm.machine.cpu import compiler_features, integer_units


@dataclass(frozen=True)
class Form:
    """One way to convolve in the compiled residual blocks.

    Attributes:
        name: ``direct`` or ``winograd``, and the bits of its registers.
        lanes: 32-bit numbers per register.
        group: channels are a multiple of this number, ...
        most_channels: ... and at most this many, or sums could exceed 32 bits.
        unit: sums are this many times the convolution; a power of two, so that scaling stays exact.
        pack: packs weights (O,I,3,3), given in whole numbers, to multiply them in the given way
            (`cabm.engine.layer_numbers.WIDE` or another).
        narrow_bits: inputs and weights of at most this many bits are multiplied in a way of their own; 0 if
            there is none.
        loop: makes the function to compile; see `cabm.engine.block_loops.residual_blocks`.
    """

    name: str
    lanes: int
    group: int
    most_channels: int
    unit: int
    pack: Callable[[Tensor, int], Tensor]
    narrow_bits: int
    loop: Callable[[], Loop]


def choose_form() -> Form | None:
    """Return the fastest form on this CPU; None if it runs none, or oneDNN is faster.

    Raises:
        ImportError: numba or llvmlite is missing or broken.
    """
    if "amx_int8" in integer_units():
        return None
    features = compiler_features()
    choices = (
        ("avx512vnni", direct, 16),
        ("avxvnni", direct, 8),
        ("avx512bw", winograd, 16),
        ("avx2", winograd, 8),
    )
    return next((form(lanes) for feature, form, lanes in choices if features.get(feature)), None)


def direct(lanes: int) -> Form:
    """Return the direct form (VNNI)."""
    from cabm.engine import block_loops, emitter, epilogue, vnni, vnni_ir

    group = vnni_ir.REGISTERS * lanes
    sources = [module.__file__ for module in (emitter, epilogue, vnni, vnni_ir)]
    return Form(
        name=f"direct {32 * lanes}",
        lanes=lanes,
        group=group,
        most_channels=(2**31 - 1) // (9 * 255 * 127),
        unit=1,
        pack=lambda codes, _: vnni.pack(codes, group),
        narrow_bits=0,
        loop=lambda: block_loops.residual_blocks(vnni.run_layer, lanes, (0, 0), sources),
    )


def winograd(lanes: int) -> Form:
    """Return the Winograd form (AVX2 or AVX-512BW)."""
    from cabm.engine import block_loops, emitter, epilogue, narrow, narrow_ir, winograd_ir
    from cabm.engine import winograd as loops

    group = winograd_ir.REGISTERS * lanes
    sources = [module.__file__ for module in (emitter, epilogue, loops, narrow, narrow_ir, winograd_ir)]
    scratch = loops.scratch_bytes(lanes)
    return Form(
        name=f"winograd {32 * lanes}",
        lanes=lanes,
        group=winograd_ir.CHUNK,
        most_channels=loops.MOST_CHANNELS,
        unit=loops.UNIT,
        pack=lambda codes, products: loops.pack(codes, group, products),
        narrow_bits=narrow.BITS,
        loop=lambda: block_loops.residual_blocks(loops.run_layer, lanes, scratch, sources),
    )
