"""Integer execution of trained models on the CPU, tested against the simulation that trained them.

`compile_model` turns a backbone into an `IntegerModel`, which upscales tiles. A backbone's layers in order
are its program (`cabm.engine.programs`, made by ``building``): byte grids for the quantizers (``grid``),
convolutions with packed weights (``packing``), and float heads and tails. Between head and tail, layers are
steps of one compiled call (``chains``, ``fused``, ``steps``) in the form that suits the CPU (``forms``);
where numba fails they run one by one (``layerwise``, ``onednn``). ``kept`` keeps compiled models on disk,
so that the next process needs no PyTorch. ``onnx_models`` writes the same networks as ONNX graphs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cabm.machine.lazy import imports_on_use

if TYPE_CHECKING:
    from cabm.engine.compiling import compile_model, supports
    from cabm.engine.integer import IntegerModel

__all__ = ["IntegerModel", "compile_model", "supports"]

__getattr__ = imports_on_use(
    __name__,
    {
        "IntegerModel": "cabm.engine.integer",
        "compile_model": "cabm.engine.compiling",
        "supports": "cabm.engine.compiling",
    },
)
