"""Integer execution of trained models on the CPU, tested against the simulation that trained them.

`compile_model` turns a backbone into an `IntegerModel`, which upscales tiles. A backbone's layers in order
are its program (`cabm.engine.programs`): byte grids for the quantizers (``grid``), convolutions with
packed weights (``packing``, ``onednn``), residual blocks (``blocks``), or all of them fused to one compiled
call (``fused``) in the form that suits the CPU (``forms``), and float tails.
``onnx_models`` writes the same networks as ONNX graphs.
"""

from cabm.engine.integer import IntegerModel, compile_model, supports

__all__ = ["IntegerModel", "compile_model", "supports"]
