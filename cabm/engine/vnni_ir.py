"""LLVM code for `cabm.engine.vnni`: convolve a few adjacent pixels, then finish their sums.

The innermost loop keeps the sums of PIXELS pixels and GROUP output channels in registers. It issues one
``vpdpbusd`` per register, which multiplies unsigned by signed bytes and adds each four products to a 32-bit
sum: 64 products at once with AVX512-VNNI, 32 with AVX-VNNI.

What follows the sums (the epilogue) is float32 arithmetic; each operation is rounded by itself, as in the
simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llvmlite import ir

from cabm.machine.cpu import vnni_lanes

LANES = vnni_lanes() or 8  # without VNNI the module can still be imported
"""32-bit sums per register: 16 in 512 bits, or 8 in 256. Code is compiled for this machine only."""

GROUP = 4 * LANES
"""Output channels per group: four registers."""

PIXELS = 6 if LANES == 16 else 2
"""Pixels computed together. Sums, weights (4) and input bytes (1) take 29 of 32 registers, or 13 of 16."""

TO_CODES, ADD_TO_CODES, ADD_TO_FLOATS = range(3)
"""Epilogues: encode the sums; or add them to the skip connection and encode, or do not encode."""

GAIN, INVERSE, LOW, HIGH, STEP, SKIP_STEP = range(6)
NEXT_READ, NEXT_SKIP, NUMBERS = 6, 8, 10
"""Places of a layer's numbers; see `cabm.engine.vnni.residual_blocks`."""

ZERO = 128  # byte of code 0 for codes with a sign
_ROUND = 12582912.0  # 1.5 * 2^23: see `cabm.engine.elementwise_loops`

_BYTE, _WORD, _SIZE, _SINGLE = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES, _WORDS, _SINGLES = (ir.VectorType(kind, LANES) for kind in (_BYTE, _WORD, _SINGLE))
_POINTER = _BYTE.as_pointer()
_REGISTERS = GROUP // LANES


class Operands(NamedTuple):
    """Operands of `emit_convolution`, in order: numbers, or addresses (`ADDRESSES`).

    Attributes:
        count: number of pixels, 1..PIXELS.
        epilogue: TO_CODES, ADD_TO_CODES or ADD_TO_FLOATS.
        source: upper left byte that the kernel reads for the first pixel.
        row: bytes from one row to the next.
        channels: input channels, a multiple of 4; also the bytes from one pixel to the next.
        weights: (3, 3 * channels / 4, GROUP, 4) int8.
        starts, factors, biases: GROUP int32, float32 and float32.
        numbers: the layer's NUMBERS float32.
        target: the first pixel's bytes in the image that is written or added to.
        following: the first pixel's bytes in the next block's input; used by ADD_TO_CODES only.
        floats: the first pixel's float32 results; used by ADD_TO_FLOATS only.
    """

    count: ir.Value
    epilogue: ir.Value
    source: ir.Value
    row: ir.Value
    channels: ir.Value
    weights: ir.Value
    starts: ir.Value
    factors: ir.Value
    biases: ir.Value
    numbers: ir.Value
    target: ir.Value
    following: ir.Value
    floats: ir.Value


ADDRESSES = set(Operands._fields) - {"count", "epilogue", "row", "channels"}


def emit_convolution(builder: ir.IRBuilder, values: Sequence[ir.Value]) -> None:
    """Emit a 3x3 convolution of ``count`` adjacent pixels to GROUP channels, and its epilogue.

    Args:
        builder: at the place to emit.
        values: the `Operands`, in order.
    """
    emit = _Emitter(builder)
    named = zip(Operands._fields, values, strict=True)
    operands = Operands(*(emit.pointer(value) if name in ADDRESSES else value for name, value in named))
    done = builder.append_basic_block("done")
    choice = builder.switch(operands.count, done)
    for pixels in range(1, PIXELS + 1):
        block = builder.append_basic_block(f"pixels{pixels}")
        choice.add_case(_SIZE(pixels), block)
        builder.position_at_end(block)
        sums = _emit_sums(emit, operands, pixels)
        _emit_epilogues(emit, operands, sums, done)
    builder.position_at_end(done)


class _Emitter:
    """Emits operations on whole registers."""

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
        name = f"llvm.x86.avx512.vpdpbusd.{32 * LANES}"  # the 256-bit one serves AVX-VNNI, too
        module = self.builder.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(_WORDS, [_WORDS] * 3), name=name)
        return self.builder.call(function, [sums, unsigned, signed])

    def phi(self, first: ir.Value, block: ir.Block) -> ir.PhiInstr:
        phi = self.builder.phi(first.type)
        phi.add_incoming(first, block)
        return phi


def _emit_sums(emit: _Emitter, operands: Operands, pixels: int) -> list[list[ir.Value]]:
    """Emit the loop over kernel rows and, inside it, over columns and input channels, four bytes at a time.

    Returns:
        For each pixel, its registers of sums.
    """
    builder = emit.builder
    quads = builder.udiv(builder.mul(operands.channels, _SIZE(3)), _SIZE(4))
    offsets = [builder.mul(operands.channels, _SIZE(pixel)) for pixel in range(pixels)]
    starts = [
        emit.load(emit.at(operands.starts, 4 * LANES * k), _WORDS) for k in range(_REGISTERS)
    ] * pixels
    before = builder.block
    rows, columns = builder.append_basic_block("rows"), builder.append_basic_block("columns")
    row_end, end = builder.append_basic_block("row_end"), builder.append_basic_block("end")
    builder.branch(rows)

    builder.position_at_end(rows)
    outer = [emit.phi(first, before) for first in (_SIZE(0), operands.source, operands.weights, *starts)]
    builder.branch(columns)

    builder.position_at_end(columns)
    inner = [emit.phi(first, rows) for first in (_SIZE(0), *outer[1:])]
    quad, source, weights, *sums = inner
    registers = [emit.load(emit.at(weights, 4 * LANES * k), _WORDS) for k in range(_REGISTERS)]
    added = []
    for pixel, offset in enumerate(offsets):
        four = emit.splat(emit.load(emit.at(source, offset), _WORD))
        for k, register in enumerate(registers):
            added.append(emit.dot(sums[pixel * _REGISTERS + k], four, register))
    nexts = [builder.add(quad, _SIZE(1)), emit.at(source, 4), emit.at(weights, 4 * GROUP), *added]
    for phi, value in zip(inner, nexts, strict=True):
        phi.add_incoming(value, columns)
    builder.cbranch(builder.icmp_unsigned("<", nexts[0], quads), columns, row_end)

    builder.position_at_end(row_end)
    following = [builder.add(outer[0], _SIZE(1)), emit.at(outer[1], operands.row), nexts[2], *added]
    for phi, value in zip(outer, following, strict=True):
        phi.add_incoming(value, row_end)
    builder.cbranch(builder.icmp_unsigned("<", following[0], _SIZE(3)), rows, end)

    builder.position_at_end(end)
    return [added[_REGISTERS * pixel : _REGISTERS * (pixel + 1)] for pixel in range(pixels)]


def _emit_epilogues(emit: _Emitter, operands: Operands, sums: list[list[ir.Value]], done: ir.Block) -> None:
    """Emit the three epilogues and the choice between them."""
    builder = emit.builder
    blocks = [builder.append_basic_block(f"epilogue{epilogue}") for epilogue in range(3)]
    choice = builder.switch(operands.epilogue, blocks[TO_CODES])
    for epilogue in (ADD_TO_CODES, ADD_TO_FLOATS):
        choice.add_case(_SIZE(epilogue), blocks[epilogue])
    for epilogue, block in enumerate(blocks):
        builder.position_at_end(block)
        numbers = [emit.splat(emit.load(emit.at(operands.numbers, 4 * i), _SINGLE)) for i in range(NUMBERS)]
        for pixel, registers in enumerate(sums):
            offset = builder.mul(operands.channels, _SIZE(pixel))
            target = emit.at(operands.target, offset)
            following = emit.at(operands.following, offset)
            floats = emit.at(operands.floats, builder.mul(offset, _SIZE(4)))
            for k, register in enumerate(registers):
                value = _emit_value(emit, operands, register, k)
                here = emit.at(target, LANES * k)
                if epilogue == TO_CODES:
                    emit.store(_emit_codes(emit, value, numbers), here)
                    continue
                total = _emit_sum(emit, value, numbers, here)
                if epilogue == ADD_TO_FLOATS:
                    emit.store(total, emit.at(floats, 4 * LANES * k))
                    continue
                read = _emit_signed_codes(emit, total, numbers, NEXT_READ)
                emit.store(read, emit.at(following, LANES * k))
                emit.store(_emit_signed_codes(emit, total, numbers, NEXT_SKIP), here)
        builder.branch(done)


def _emit_value(emit: _Emitter, operands: Operands, sums: ir.Value, k: int) -> ir.Value:
    """Emit sum * factor + bias for the k-th register of a pixel."""
    factors, biases = (
        emit.load(emit.at(pointer, 4 * LANES * k), _SINGLES)
        for pointer in (operands.factors, operands.biases)
    )
    product = emit.builder.fmul(emit.builder.sitofp(sums, _SINGLES), factors)
    return emit.builder.fadd(product, biases)


def _emit_whole(
    emit: _Emitter, value: ir.Value, inverse: ir.Value, low: ir.Value, high: ir.Value
) -> ir.Value:
    """Emit value * inverse, clipped and rounded, plus `_ROUND`: its lowest byte is that of the code."""
    rounding = ir.Constant(_SINGLES, [_ROUND] * LANES)
    return emit.builder.fadd(emit.clip(emit.builder.fmul(value, inverse), low, high), rounding)


def _emit_codes(emit: _Emitter, value: ir.Value, numbers: list[ir.Value]) -> ir.Value:
    """Emit the bytes of a register of convolution outputs."""
    value = emit.builder.fmul(value, numbers[GAIN])
    whole = _emit_whole(emit, value, *numbers[INVERSE : HIGH + 1])
    return emit.builder.trunc(emit.builder.bitcast(whole, _WORDS), _BYTES)


def _emit_sum(emit: _Emitter, value: ir.Value, numbers: list[ir.Value], target: ir.Value) -> ir.Value:
    """Emit the sum of the residual, rounded to its codes, and the skip connection."""
    builder = emit.builder
    value = builder.fmul(value, numbers[GAIN])
    whole = _emit_whole(emit, value, *numbers[INVERSE : HIGH + 1])
    codes = builder.fsub(whole, ir.Constant(_SINGLES, [_ROUND] * LANES))
    residual = builder.fmul(codes, numbers[STEP])
    zero = ir.Constant(_WORDS, [ZERO] * LANES)
    skip = builder.sub(builder.zext(emit.load(target, _BYTES), _WORDS), zero)
    return builder.fadd(residual, builder.fmul(builder.sitofp(skip, _SINGLES), numbers[SKIP_STEP]))


def _emit_signed_codes(emit: _Emitter, total: ir.Value, numbers: list[ir.Value], grid: int) -> ir.Value:
    """Emit the bytes of a sum on the signed grid whose inverse and largest code are ``numbers[grid:]``."""
    builder, (inverse, high) = emit.builder, numbers[grid : grid + 2]
    whole = _emit_whole(emit, total, inverse, builder.fneg(high), high)
    zero = ir.Constant(_WORDS, [ZERO] * LANES)
    return builder.trunc(builder.add(builder.bitcast(whole, _WORDS), zero), _BYTES)
