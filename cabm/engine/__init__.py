"""Integer execution of trained models on the CPU, tested against the simulation that trained them.

`compile_model` turns a backbone into an `IntegerModel`, which upscales tiles. A backbone's layers in order
are its program (`cabm.engine.programs`): byte grids for the quantizers (``grid``), convolutions with
packed weights (``packing``), and float tails. Between head and tail, layers are steps of one compiled
call (``chains``, ``fused``, ``steps``) in the form that suits the CPU (``forms``); where numba fails they
run one by one (``blocks``, ``onednn``).
``onnx_models`` writes the same networks as ONNX graphs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cabm.engine.integer import IntegerModel, compile_model, supports

__all__ = ["IntegerModel", "compile_model", "supports"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: compiled layers run without PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("cabm.engine.integer"), name)
