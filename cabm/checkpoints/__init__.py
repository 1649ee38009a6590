"""Model directories: save, load and find them, import published checkpoints, export to ONNX.

The models that ship with the package are in ``pretrained``.
"""
