"""Integer execution of trained models, tested against the simulation that trained them."""

from cabm.engine.integer import IntegerModel, compile_model, supports

__all__ = ["IntegerModel", "compile_model", "supports"]
