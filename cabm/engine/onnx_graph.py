"""Build ONNX graphs of quantized convolutions; needs onnx (extra ``onnx``).

Codes are stored in 8 bits. QuantizeLinear saturates there, so codes of fewer bits are clipped after it. A
convolution whose result is quantized is a float Conv between DequantizeLinear and QuantizeLinear, which
runtimes fuse into one integer kernel. A convolution whose result stays float is a ConvInteger.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from cabm.engine.grid import Grid
from cabm.engine.modules import weight_bits_at
from cabm.quant.layers import QuantConv2d

OPSET = 17


class Codes(NamedTuple):
    """A quantized tensor of the graph: the name of its bytes, and their grid."""

    data: str
    grid: Grid


class GraphBuilder:
    """Collects the nodes and constants of a graph; methods return the name of the tensor they add."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._known: dict[tuple[str, bytes], str] = {}

    def constant(self, value: np.ndarray | Tensor | np.generic) -> str:
        """Return the name of a constant; equal constants share one tensor."""
        value = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        key = f"{value.dtype}{value.shape}", value.tobytes()
        if key not in self._known:
            self._known[key] = f"constant_{len(self._constants)}"
            self._constants.append(numpy_helper.from_array(value, self._known[key]))
        return self._known[key]

    def node(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output."""
        name = output or f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def quantize(self, x: str, grid: Grid) -> Codes:
        """Quantize a float tensor."""
        data = self.node("QuantizeLinear", x, *self._scale_and_zero(grid))
        low, high = grid.low + grid.zero, grid.levels + grid.zero
        if (low, high) != (0, 255):
            data = self.node("Clip", data, self.constant(np.uint8(low)), self.constant(np.uint8(high)))
        return Codes(data, grid)

    def dequantize(self, codes: Codes) -> str:
        """Return the float values of codes."""
        return self.node("DequantizeLinear", codes.data, *self._scale_and_zero(codes.grid))

    def conv_between_codes(self, x: Codes, conv: QuantConv2d) -> str:
        """Convolve codes; the result must go to `quantize`, at most a ReLU in between."""
        weight, scale, pads = _weight(conv, x.grid)
        step = x.grid.scale * scale
        zero = np.zeros(scale.shape, np.int8)
        weights = self.constant(weight), self.constant(scale), self.constant(zero)
        inputs = [self.dequantize(x), self.node("DequantizeLinear", *weights, axis=0)]
        if conv.bias is not None:
            codes = np.rint(conv.bias.detach().numpy() / step).clip(-(2**30), 2**30).astype(np.int32)
            inputs.append(self.node("DequantizeLinear", self.constant(codes), self.constant(step), axis=0))
        return self.node("Conv", *inputs, pads=pads, group=conv.groups)

    def conv_to_float(self, x: Codes, conv: QuantConv2d, outputs: slice = slice(None)) -> str:
        """Convolve codes to float values, for some of the output channels."""
        weight, scale, pads = _weight(conv, x.grid)
        zeros = self.constant(np.uint8(x.grid.zero)), self.constant(np.int8(0))
        weight_name = self.constant(weight[outputs])
        sums = self.node("ConvInteger", x.data, weight_name, *zeros, pads=pads, group=conv.groups)
        floats = self.node("Cast", sums, to=onnx.TensorProto.FLOAT)
        step = x.grid.scale * (scale[outputs].reshape(1, -1, 1, 1) if scale.ndim else scale)
        y = self.node("Mul", floats, self.constant(step))
        if conv.bias is None:
            return y
        return self.node("Add", y, self.constant(conv.bias[outputs].view(1, -1, 1, 1)))

    def conv(self, x: str, weight: Tensor, bias: Tensor | None, output: str | None = None) -> str:
        """Convolve floats with "same" padding and stride 1."""
        inputs = [x, self.constant(weight)] + ([] if bias is None else [self.constant(bias)])
        return self.node("Conv", *inputs, pads=[weight.shape[-1] // 2] * 4, output=output)

    def norm(self, x: str, norm: nn.BatchNorm2d) -> str:
        """Add batch norm in evaluation mode."""
        inputs = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        names = [self.constant(value) for value in inputs]
        return self.node("BatchNormalization", x, *names, epsilon=norm.eps)

    def pixel_shuffle(self, x: str, factor: int) -> str:
        """Add PixelShuffle(factor)."""
        return self.node("DepthToSpace", x, blocksize=factor, mode="CRD")

    def build(self, scale: int, properties: dict[str, str]) -> onnx.ModelProto:
        """Return the checked model: "image" (N,3,h,w) float32 to "upscaled" (N,3,h*scale,w*scale)."""
        float32 = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self._nodes,
            "cabm",
            [helper.make_tensor_value_info("image", float32, ["n", 3, "h", "w"])],
            [helper.make_tensor_value_info("upscaled", float32, ["n", 3, f"{scale}*h", f"{scale}*w"])],
            self._constants,
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9, producer_name="cabm")
        helper.set_model_props(model, properties)
        onnx.checker.check_model(model)
        return model

    def _scale_and_zero(self, grid: Grid) -> tuple[str, str]:
        return self.constant(grid.scale), self.constant(np.uint8(grid.zero))


def _weight(conv: QuantConv2d, grid: Grid) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return int8 codes, their step (or one per output channel), and the padding of the four sides."""
    with torch.no_grad():
        codes, scale = conv.codes(weight_bits_at(conv, grid.bits))
    steps = scale.flatten().numpy() if scale.dim() else scale.numpy()
    return codes.to(torch.int8).numpy(), steps, [*conv.padding, *conv.padding]
