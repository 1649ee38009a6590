"""The backbones as ONNX graphs at one row of bits; a function per backbone."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from torch import nn

from cabm.engine.building.idn import as_convolution
from cabm.engine.grid import Storage
from cabm.engine.modules import grid_of, quantizer, skip_quantizer
from cabm.engine.onnx_graph import Codes, GraphBuilder
from cabm.engine.packing import Row
from cabm.models.base import Backbone
from cabm.models.carn import CARN, Cascade, ResidualBlock
from cabm.models.edsr import EDSR, TAIL_REACH
from cabm.models.idn import IDN, SLOPE, DistillationBlock
from cabm.models.srresnet import SRResNet
from cabm.quant.levels import PAMS_BITS


def onnx_model(model: Backbone, row: Row) -> onnx.ModelProto:
    """Return a quantized backbone at one row of bits as an ONNX model."""
    graphs = {"edsr": _edsr, "srresnet": _srresnet, "carn": _carn, "idn": _idn}
    builder = GraphBuilder()
    with torch.no_grad():
        graphs[model.name](builder, model.eval(), row)
    properties = {"backbone": model.name, "bits": " ".join(map(str, row or (PAMS_BITS,)))}
    return builder.build(model.scale, properties)


def _edsr(g: GraphBuilder, model: EDSR, row: Row) -> None:
    mean = g.constant(model.mean)
    head = g.conv(g.node("Sub", "image", mean), model.head.weight, model.head.bias)
    x = head
    for block in model.body:
        read, skip = _block_input(g, x, block, row)
        hidden = g.node("Relu", g.conv_between_codes(read, block.conv1))
        hidden = g.quantize(hidden, grid_of(block.act2, row, Storage.POSITIVE))
        residual = g.conv_between_codes(hidden, block.conv2)
        if block.res_scale != 1:
            residual = g.node("Mul", residual, g.constant(np.float32(block.res_scale)))
        residual = g.quantize(residual, grid_of(block.act3, row, Storage.SHIFTED))
        x = g.node("Add", g.dequantize(residual), g.dequantize(skip))
    x = g.node("Add", g.conv(x, model.body_end.weight, model.body_end.bias), head)
    if model.replicate_tail:
        sides = g.constant(np.array([0, 0, TAIL_REACH, TAIL_REACH] * 2, np.int64))
        x = g.node("Pad", x, sides, mode="edge")
    for conv, factor in zip(model.upsample, model.factors, strict=True):
        x = g.pixel_shuffle(g.conv(x, conv.weight, conv.bias), factor)
    x = g.conv(x, model.tail.weight, model.tail.bias)
    if model.replicate_tail:
        margin = TAIL_REACH * model.scale
        ends = (np.array([end, end], np.int64) for end in (margin, -margin))
        x = g.node("Slice", x, *(g.constant(end) for end in ends), g.constant(np.array([2, 3], np.int64)))
    g.node("Add", x, mean, output="upscaled")


def _block_input(g: GraphBuilder, x: str, block: nn.Module, row: Row) -> tuple[Codes, Codes]:
    """Quantize a residual block's input, for its first convolution and for its skip connection."""
    grid = grid_of(block.act1, row, Storage.SHIFTED)
    skip = skip_quantizer(block).grid(row, Storage.SHIFTED)
    read = g.quantize(x, grid)
    return read, read if skip == grid else g.quantize(x, skip)


def _srresnet(g: GraphBuilder, model: SRResNet, row: Row) -> None:
    def prelu(x: str, module: nn.PReLU) -> str:
        return g.node("LeakyRelu", x, alpha=float(module.weight))

    head = prelu(g.conv("image", model.head.weight, None), model.prelu)
    x = head
    for block in model.body:
        read, skip = _block_input(g, x, block, row)
        hidden = prelu(g.norm(g.conv_to_float(read, block.conv1), block.bn1), model.prelu)
        hidden_codes = g.quantize(hidden, grid_of(block.act2, row, Storage.SHIFTED))
        residual = g.norm(g.conv_to_float(hidden_codes, block.conv2), block.bn2)
        x = g.node("Add", residual, g.dequantize(skip))
    x = g.node("Add", g.norm(g.conv(x, model.body_end.weight, None), model.body_end_bn), head)
    for conv, module, factor in zip(model.upsample, model.upsample_prelu, model.factors, strict=True):
        x = prelu(g.pixel_shuffle(g.conv(x, conv.weight, None), factor), module)
    g.conv(x, model.tail.weight, None, output="upscaled")


def _carn(g: GraphBuilder, model: CARN, row: Row) -> None:
    def block(x: str, module: ResidualBlock) -> str:
        codes = g.quantize(x, grid_of(module.act1, row, quantizer(module.act1).input_storage))
        hidden = g.node("Relu", g.conv_between_codes(codes, module.conv1))
        codes = g.quantize(hidden, grid_of(module.act2, row, Storage.POSITIVE))
        return g.node("Relu", g.node("Add", g.conv_to_float(codes, module.conv2), x))

    def cascade(x: str, module: Cascade) -> str:
        collected, hidden = [x], x
        for inner, fusion in zip(module.blocks, module.fusion, strict=True):
            run = cascade if isinstance(inner, Cascade) else block
            collected.append(run(hidden, inner))
            joined = g.node("Concat", *collected, axis=1)
            hidden = g.node("Relu", g.conv(joined, fusion.weight, fusion.bias))
        return hidden

    mean, full = g.constant(model.mean), g.constant(np.float32(255))
    x = g.conv(g.node("Sub", g.node("Div", "image", full), mean), model.head.weight, model.head.bias)
    x = cascade(x, model.body)
    for conv, factor in zip(model.upsample, model.factors, strict=True):
        x = g.pixel_shuffle(g.node("Relu", g.conv(x, conv.weight, conv.bias)), factor)
    x = g.conv(x, model.tail.weight, model.tail.bias)
    g.node("Mul", g.node("Add", x, mean), full, output="upscaled")


def _idn(g: GraphBuilder, model: IDN, row: Row) -> None:
    def leaky(x: str) -> str:
        return g.node("LeakyRelu", x, alpha=SLOPE)

    def step(x: str, act: nn.Module, conv: nn.Module, outputs: slice = slice(None)) -> str:
        codes = g.quantize(x, grid_of(act, row, quantizer(act).input_storage))
        return leaky(g.conv_to_float(codes, conv, outputs))

    def block(x: str, module: DistillationBlock) -> str:
        hidden = step(x, module.act1, module.conv1)
        third = step(hidden, module.act2, module.conv2)
        distilled = step(third, module.act3, module.conv3, slice(module.num_kept, None))
        hidden = step(third, module.act3, module.conv3, slice(0, module.num_kept))
        hidden = step(hidden, module.act4, module.conv4)
        hidden = step(hidden, module.act5, module.conv5)
        feature = step(hidden, module.act6, module.conv6)
        joined = g.node("Add", feature, g.node("Concat", x, distilled, axis=1))
        return g.conv(joined, module.compression.weight, module.compression.bias)

    hidden = step("image", model.entry1_act, model.entry1)
    hidden = step(hidden, model.entry2_act, model.entry2)
    for module in model.body:
        hidden = block(hidden, module)
    upscaled = g.pixel_shuffle(g.conv(hidden, *as_convolution(model.tail)), model.scale)
    sizes = g.constant(np.array([1, 1, model.scale, model.scale], np.float32))
    cubic = {"mode": "cubic", "cubic_coeff_a": -0.75, "coordinate_transformation_mode": "half_pixel"}
    bicubic = g.node("Resize", "image", "", sizes, **cubic)
    g.node("Add", upscaled, bicubic, output="upscaled")
