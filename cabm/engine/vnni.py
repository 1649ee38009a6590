"""Residual blocks of 3x3 convolutions on bytes, compiled by numba for processors with VNNI.

Importing this module needs numba; `cabm.engine.blocks` does so where it is installed.

All blocks of a tile are one call: between layers no operator is started, no memory is allocated and no
lock is taken, so that small tiles run as fast per pixel as large ones. The innermost loop is written in
LLVM's own language. It holds the sums of some pixels and output channels in registers and does nothing but
``vpdpbusd``, which multiplies 64 (or 32) unsigned by as many signed bytes and adds each four products to a
sum of 32 bits.

Bytes lie channels last, (height + 2, width + 2, channels), in a frame of one pixel of code 0, so that no
convolution asks where the border is.

All is in one file, because numba's cache asks for the age of the file of what it compiled, and of no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic, register_jitable


def _lanes() -> int:
    return 16 if binding.get_host_cpu_features().get("avx512vnni") else 8


LANES = _lanes()
"""Sums in a register of this machine, for which alone code is compiled: 512 bits, or 256 (AVX-VNNI)."""

GROUP = 4 * LANES
"""Channels come in groups of this many: four registers."""

PIXELS = 6 if LANES == 16 else 2
"""Pixels computed together: sums, 4 registers of weights and one of bytes take 29 of 32, or 13 of 16."""

TO_CODES, ADD_TO_CODES, ADD_TO_FLOATS = range(3)
"""What is done with the sums: see `residual_blocks`."""

GAIN, INVERSE, LOW, HIGH, STEP, SKIP_STEP, NEXT_INVERSE, NEXT_HIGH = range(8)
"""Numbers of a layer, in the order in which they are given."""

ZERO = 128  # byte of code 0 where codes have both signs
_ROUND = 12582912.0  # 1.5 * 2^23: see `cabm.engine.elementwise_loops`

_BYTE, _WORD, _SIZE, _SINGLE = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES, _WORDS, _SINGLES = (ir.VectorType(kind, LANES) for kind in (_BYTE, _WORD, _SINGLE))
_POINTER = _BYTE.as_pointer()
_REGISTERS = GROUP // LANES


class _Emitter:
    """Writes LLVM code that works on a register of numbers at once."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def pointer(self, address: ir.Value) -> ir.Value:
        return self.builder.inttoptr(address, _POINTER)

    def at(self, pointer: ir.Value, offset: int | ir.Value) -> ir.Value:
        offset = _SIZE(offset) if isinstance(offset, int) else offset
        return self.builder.gep(pointer, [offset])

    def load(self, pointer: ir.Value, kind: ir.Type) -> ir.Value:
        return self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), align=1)

    def store(self, value: ir.Value, pointer: ir.Value) -> None:
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()), align=1)

    def splat(self, value: ir.Value) -> ir.Value:
        kind = ir.VectorType(value.type, LANES)
        nothing = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(nothing, value, _WORD(0))
        return self.builder.shuffle_vector(first, nothing, ir.Constant(_WORDS, [0] * LANES))

    def clip(self, value: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
        value = self.builder.select(self.builder.fcmp_ordered(">", value, low), value, low)
        return self.builder.select(self.builder.fcmp_ordered("<", value, high), value, high)

    def dot(self, sums: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * LANES}"  # of 256 bits also where there is AVX-VNNI alone
        module = self.builder.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(_WORDS, [_WORDS] * 3), name=name)
        return self.builder.call(function, [sums, unsigned, signed])


class _Arguments:
    """Operands of `_convolve` by name."""

    names = (
        ("count", types.intp),
        ("then", types.intp),
        ("source", types.uintp),
        ("row", types.intp),
        ("channels", types.intp),
        ("weights", types.uintp),
        ("starts", types.uintp),
        ("factors", types.uintp),
        ("biases", types.uintp),
        ("numbers", types.uintp),
        ("target", types.uintp),
        ("floats", types.uintp),
    )

    def __init__(self, emit: _Emitter, values: Sequence[ir.Value]) -> None:
        for (name, kind), value in zip(self.names, values, strict=True):
            setattr(self, name, emit.pointer(value) if kind == types.uintp else value)


def _signature() -> Any:
    return types.void(*(kind for _, kind in _Arguments.names))


@intrinsic
def _convolve(
    context: Any,
    count: Any,
    then: Any,
    source: Any,
    row: Any,
    channels: Any,
    weights: Any,
    starts: Any,
    factors: Any,
    biases: Any,
    numbers: Any,
    target: Any,
    floats: Any,
) -> Any:
    """Convolve some pixels side by side to a group of output channels, and do with the sums what is asked.

    Args:
        count: how many pixels, 1..PIXELS.
        then: TO_CODES, ADD_TO_CODES or ADD_TO_FLOATS.
        source: address of the upper left byte that the first pixel's kernel reads.
        row: bytes from one row to the next.
        channels: input channels, a multiple of 4; as many bytes lie from one pixel to the next, everywhere.
        weights: address of (3, 3 * channels / 4, GROUP, 4) int8.
        starts, factors, biases: addresses of GROUP int32, float32 and float32.
        numbers: address of the layer's 8 float32.
        target: address of the first pixel's bytes in what is written or added to.
        floats: address of the first pixel's float32 results; read for ADD_TO_FLOATS alone.
    """

    def generate(target: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        emit = _Emitter(builder)
        arguments = _Arguments(emit, values)
        done = builder.append_basic_block("done")
        choice = builder.switch(arguments.count, done)
        for pixels in range(1, PIXELS + 1):
            block = builder.append_basic_block(f"pixels{pixels}")
            choice.add_case(_SIZE(pixels), block)
            builder.position_at_end(block)
            sums = _emit_sums(emit, arguments, pixels)
            _emit_endings(emit, arguments, sums, done)
        builder.position_at_end(done)
        return target.get_dummy_value()

    return _signature(), generate


def _emit_sums(emit: _Emitter, arguments: _Arguments, pixels: int) -> list[list[ir.Value]]:
    """Write the loops over kernel rows and, in them, over columns and channels, four bytes at a time."""
    builder = emit.builder
    quads = builder.udiv(builder.mul(arguments.channels, _SIZE(3)), _SIZE(4))
    offsets = [builder.mul(arguments.channels, _SIZE(pixel)) for pixel in range(pixels)]
    starts = [
        emit.load(emit.at(arguments.starts, 4 * LANES * k), _WORDS) for k in range(_REGISTERS)
    ] * pixels
    before = builder.block
    rows, columns = builder.append_basic_block("rows"), builder.append_basic_block("columns")
    row_end, end = builder.append_basic_block("row_end"), builder.append_basic_block("end")
    builder.branch(rows)

    builder.position_at_end(rows)
    outer = [
        _phi(builder, first, before) for first in (_SIZE(0), arguments.source, arguments.weights, *starts)
    ]
    builder.branch(columns)

    builder.position_at_end(columns)
    inner = [_phi(builder, first, rows) for first in (_SIZE(0), *outer[1:])]
    quad, source, weights, *sums = inner
    registers = [emit.load(emit.at(weights, 4 * LANES * k), _WORDS) for k in range(_REGISTERS)]
    added = []
    for pixel, offset in enumerate(offsets):
        four = emit.splat(emit.load(emit.at(source, offset), _WORD))
        for k, register in enumerate(registers):
            added.append(emit.dot(sums[pixel * _REGISTERS + k], four, register))
    nexts = [
        builder.add(quad, _SIZE(1)),
        emit.at(source, 4),
        emit.at(weights, 4 * GROUP),
        *added,
    ]
    for phi, value in zip(inner, nexts, strict=True):
        phi.add_incoming(value, columns)
    builder.cbranch(builder.icmp_unsigned("<", nexts[0], quads), columns, row_end)

    builder.position_at_end(row_end)
    following = [builder.add(outer[0], _SIZE(1)), emit.at(outer[1], arguments.row), nexts[2], *added]
    for phi, value in zip(outer, following, strict=True):
        phi.add_incoming(value, row_end)
    builder.cbranch(builder.icmp_unsigned("<", following[0], _SIZE(3)), rows, end)

    builder.position_at_end(end)
    return [added[_REGISTERS * pixel : _REGISTERS * (pixel + 1)] for pixel in range(pixels)]


def _phi(builder: ir.IRBuilder, first: ir.Value, block: ir.Block) -> Any:
    phi = builder.phi(first.type)
    phi.add_incoming(first, block)
    return phi


def _emit_endings(
    emit: _Emitter, arguments: _Arguments, sums: list[list[ir.Value]], done: ir.Block
) -> None:
    """Write what follows the sums, by `then`; each float32 operation is rounded by itself."""
    builder = emit.builder
    blocks = [builder.append_basic_block(f"then{then}") for then in range(3)]
    choice = builder.switch(arguments.then, blocks[TO_CODES])
    for then in (ADD_TO_CODES, ADD_TO_FLOATS):
        choice.add_case(_SIZE(then), blocks[then])
    for then, block in enumerate(blocks):
        builder.position_at_end(block)
        numbers = [emit.splat(emit.load(emit.at(arguments.numbers, 4 * i), _SINGLE)) for i in range(8)]
        for pixel, registers in enumerate(sums):
            offset = builder.mul(arguments.channels, _SIZE(pixel))
            target = emit.at(arguments.target, offset)
            floats = emit.at(arguments.floats, builder.mul(offset, _SIZE(4)))
            for k, register in enumerate(registers):
                value = _emit_value(emit, arguments, register, k)
                here = emit.at(target, LANES * k)
                result = _emit_result(emit, then, value, numbers, here)
                emit.store(result, emit.at(floats, 4 * LANES * k) if then == ADD_TO_FLOATS else here)
        builder.branch(done)


def _emit_value(emit: _Emitter, arguments: _Arguments, sums: ir.Value, k: int) -> ir.Value:
    factors, biases = (
        emit.load(emit.at(pointer, 4 * LANES * k), _SINGLES)
        for pointer in (arguments.factors, arguments.biases)
    )
    product = emit.builder.fmul(emit.builder.sitofp(sums, _SINGLES), factors)
    return emit.builder.fadd(product, biases)


def _emit_result(
    emit: _Emitter, then: int, value: ir.Value, numbers: list[ir.Value], target: ir.Value
) -> ir.Value:
    builder = emit.builder
    rounding = ir.Constant(_SINGLES, [_ROUND] * LANES)

    def rounded(value: ir.Value, inverse: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
        return builder.fadd(emit.clip(builder.fmul(value, inverse), low, high), rounding)

    value = builder.fmul(value, numbers[GAIN])
    whole = rounded(value, numbers[INVERSE], numbers[LOW], numbers[HIGH])
    if then == TO_CODES:  # what was added to round does not reach the lowest byte
        return builder.trunc(builder.bitcast(whole, _WORDS), _BYTES)
    residual = builder.fmul(builder.fsub(whole, rounding), numbers[STEP])
    zero = ir.Constant(_WORDS, [ZERO] * LANES)
    skip = builder.sub(builder.zext(emit.load(target, _BYTES), _WORDS), zero)
    total = builder.fadd(residual, builder.fmul(builder.sitofp(skip, _SINGLES), numbers[SKIP_STEP]))
    if then == ADD_TO_FLOATS:
        return total
    high = numbers[NEXT_HIGH]
    whole = rounded(total, numbers[NEXT_INVERSE], builder.fneg(high), high)
    return builder.trunc(builder.add(builder.bitcast(whole, _WORDS), zero), _BYTES)


@register_jitable
def _convolve_all(then, source, weights, starts, factors, biases, numbers, target, floats, height, width):
    """Convolve all pixels of a framed byte image; see `residual_blocks`."""
    channels = starts.size
    pitch = (width + 2) * channels
    for first in range(0, channels, GROUP):
        for y in range(height):
            x = 0
            for left in range(-(-width // PIXELS), 0, -1):
                count = -(-(width - x) // left)  # as even as can be
                here = y * pitch + x * channels
                _convolve(
                    count,
                    then,
                    source.ctypes.data + np.uintp(here),
                    pitch,
                    channels,
                    weights + np.uintp(first * 9 * channels),
                    starts.ctypes.data + np.uintp(4 * first),
                    factors.ctypes.data + np.uintp(4 * first),
                    biases.ctypes.data + np.uintp(4 * first),
                    numbers.ctypes.data,
                    target.ctypes.data + np.uintp(here + pitch + channels + first),
                    floats.ctypes.data + np.uintp(4 * ((y * width + x) * channels + first)),
                )
                x += count


@register_jitable
def _frame(image, height, width, channels, byte):
    """Fill the outermost pixels of a framed image."""
    pitch = (width + 2) * channels
    image[:pitch] = byte
    image[(height + 1) * pitch :] = byte
    for y in range(1, height + 1):
        image[y * pitch : y * pitch + channels] = byte
        image[(y + 1) * pitch - channels : (y + 1) * pitch] = byte


def residual_blocks(codes, height, width, weights, starts, factors, biases, numbers, out):
    """Run residual blocks conv, ReLU, conv, add on codes; what is added to is on codes too.

    Args:
        codes: flat uint8 (height * width * C), channels last: input of the first block, with `ZERO`. C: a
            multiple of GROUP.
        height, width: pixels.
        weights: (2B,) addresses of int8 weights of the convolutions, first and second of each block, in the
            order (C / GROUP, 3, 3, C / 4, GROUP, 4): group of outputs, row, column, inputs, output, input.
        starts: (2B, C) int32, that sums start from.
        factors, biases: (2B, C) float32: value of a convolution = sum * factor + bias.
        numbers: (2B, 8) float32. Codes of a value: value * GAIN * INVERSE rounded, at least LOW, at most
            HIGH. Of a block's second convolution they count STEP each, those of the block's input
            SKIP_STEP; the sum of both is encoded by NEXT_INVERSE up to NEXT_HIGH of either sign.
        out: flat float32 of the same length as codes, for the last block's sum, which is not encoded.
    """
    channels = starts.shape[1]
    size = (height + 2) * (width + 2) * channels
    skip, hidden = np.empty(size, np.uint8), np.empty(size, np.uint8)
    _frame(skip, height, width, channels, ZERO)
    _frame(hidden, height, width, channels, 0)
    row = width * channels
    for y in range(height):
        start = (y + 1) * (row + 2 * channels) + channels
        skip[start : start + row] = codes[y * row : (y + 1) * row]
    last = weights.size - 1
    for i in range(weights.size):
        then, source, target = TO_CODES, skip, hidden
        if i % 2 == 1:  # in place: a pixel's sum takes of what it is added to that pixel alone
            then, source, target = ADD_TO_CODES if i < last else ADD_TO_FLOATS, hidden, skip
        _convolve_all(
            then,
            source,
            weights[i],
            starts[i],
            factors[i],
            biases[i],
            numbers[i],
            target,
            out,
            height,
            width,
        )
