"""Which registers the loops of float convolutions use on this CPU, and their loops for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cabm.machine.compiled import Loop, compiles_for_this_cpu
from cabm.machine.cpu import compiler_features

Features = Mapping[int, Sequence[str]]
"""By float32 per register, widest first: instruction sets, by LLVM's names, one of which a loop needs."""


def widest(features: Features) -> int | None:
    """Return the most float32 per register for which a loop compiles on this CPU; None: there is none.

    Raises:
        ImportError: llvmlite is missing.
    """
    known = compiler_features()
    return next((lanes for lanes, any_of in features.items() if any(map(known.get, any_of))), None)


def compiles(features: Features, lanes: int) -> bool:
    """Return whether this CPU has registers of ``lanes`` float32, and numba may use them.

    Raises:
        ImportError: numba or llvmlite is missing.
    """
    return compiles_for_this_cpu() and any(map(compiler_features().get, features[lanes]))


def loop_for(compiled: Callable[[int], Loop | None], lanes: int) -> Loop:
    """Return the loop that weights for ``lanes`` need.

    Raises:
        RuntimeError: this CPU runs none.
    """
    loop = compiled(lanes)
    if loop is None:
        raise RuntimeError(f"no compiled convolution with {lanes} numbers per register runs here")
    return loop
