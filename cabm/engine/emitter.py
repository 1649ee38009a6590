"""LLVM operations on whole registers, and how numba's loops call code that is written in them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from llvmlite import ir
from numba import types

BYTE, HALF, WORD, SIZE, SINGLE = *(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType()
POINTER = BYTE.as_pointer()


def checksum(*modules: ModuleType) -> int:
    """Return a number that changes with the code of modules.

    Functions to compile close over it: numba's cache of compiled functions compares closures, and the age
    of the function's file, but not of the modules that it imports.
    """
    return zlib.crc32(b"".join(Path(str(module.__file__)).read_bytes() for module in modules))


class Emitter:
    """Emits operations on registers.

    Args:
        builder: at the place to emit.
        lanes: 32-bit numbers per register: 4 in 128 bits, 8 in 256, 16 in 512.

    Attributes:
        bytes, words, singles: types of ``lanes`` numbers.
        halves: type of a full register of 16-bit numbers.
    """

    def __init__(self, builder: ir.IRBuilder, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.bytes, self.words, self.singles = (ir.VectorType(kind, lanes) for kind in (BYTE, WORD, SINGLE))
        self.halves = ir.VectorType(HALF, 2 * lanes)

    def pointer(self, address: ir.Value) -> ir.Value:
        """Return a pointer to an address."""
        return self.builder.inttoptr(address, POINTER)

    def at(self, pointer: ir.Value, offset: int | ir.Value) -> ir.Value:
        """Return a pointer ``offset`` bytes further."""
        offset = SIZE(offset) if isinstance(offset, int) else offset
        return self.builder.gep(pointer, [offset])

    def load(self, pointer: ir.Value, kind: ir.Type) -> ir.Value:
        """Load a value that need not be aligned."""
        return self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), align=1)

    def store(self, value: ir.Value, pointer: ir.Value) -> None:
        """Store a value that need not be aligned."""
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()), align=1)

    def splat(self, value: ir.Value) -> ir.Value:
        """Fill a register with one number."""
        nothing = ir.Constant(ir.VectorType(value.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(nothing, value, WORD(0))
        return self.builder.shuffle_vector(first, nothing, self.constant(self.words, 0))

    def constant(self, kind: ir.VectorType, value: float) -> ir.Constant:
        """Fill a register with one constant."""
        return ir.Constant(kind, [value] * kind.count)

    def clip(self, value: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
        """Clip numbers to low..high."""
        value = self.builder.select(self.builder.fcmp_ordered(">", value, low), value, low)
        return self.builder.select(self.builder.fcmp_ordered("<", value, high), value, high)

    def limit(self, value: ir.Value, most: ir.Value) -> ir.Value:
        """Clip numbers to -most..most."""
        if self.lanes < 16:
            return self.clip(value, self.builder.fneg(most), most)
        # AVX512DQ in one instruction: the smaller magnitude (2), with the sign of the value
        arguments = [value, most, WORD(2), value, HALF(-1), WORD(4)]
        return self.call("llvm.x86.avx512.mask.range.ps.512", self.singles, arguments)

    def leaky(self, value: ir.Value, slope: ir.Value) -> ir.Value:
        """Multiply negative numbers by a slope."""
        negative = self.builder.fcmp_ordered("<", value, self.constant(self.singles, 0))
        return self.builder.select(negative, self.builder.fmul(value, slope), value)

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """Return a * b + c, rounded once."""
        return self.call(f"llvm.fma.v{self.lanes}f32", self.singles, [a, b, c])

    def call(self, name: str, result: ir.Type, arguments: Sequence[ir.Value]) -> ir.Value:
        """Call one of LLVM's functions for a processor's instruction."""
        module = self.builder.module
        function = module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(result, [each.type for each in arguments])
            function = ir.Function(module, kind, name=name)
        return self.builder.call(function, arguments)

    def forget_memory(self) -> None:
        """Let LLVM store before this place, and load behind it, what it would keep in registers."""
        nothing = ir.FunctionType(ir.VoidType(), [])
        self.builder.call(ir.InlineAsm(nothing, "", "~{memory}", side_effect=True), [])

    def multiply_pairs(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Multiply 16-bit numbers and add adjacent products in 32 bits (AVX2 or AVX-512BW)."""
        name = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[self.lanes]
        return self.call(name, self.words, [a, b])

    def phi(self, first: ir.Value, block: ir.Block) -> ir.PhiInstr:
        """Start a loop's variable at a value that comes from ``block``."""
        phi = self.builder.phi(first.type)
        phi.add_incoming(first, block)
        return phi

    def loop(
        self, count: ir.Value, firsts: Sequence[ir.Value], body: Callable[..., Sequence[ir.Value]]
    ) -> list[ir.Value]:
        """Emit a loop that runs at least once.

        Args:
            count: how often it runs.
            firsts: the values that it starts from.
            body: called with the number of the pass and with these values, emits their next ones.

        Returns:
            The last values.
        """
        builder, before = self.builder, self.builder.block
        start, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
        builder.branch(start)
        builder.position_at_end(start)
        index, *values = phis = [self.phi(first, before) for first in (SIZE(0), *firsts)]
        nexts = [builder.add(index, SIZE(1)), *body(index, *values)]
        for phi, value in zip(phis, nexts, strict=True):
            phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_unsigned("<", nexts[0], count), start, end)
        builder.position_at_end(end)
        return nexts[1:]

    def choose(self, choice: ir.Value, bodies: dict[int, Callable[[], None]]) -> None:
        """Emit a choice between pieces of code by a number; other numbers choose none."""
        builder = self.builder
        done = builder.append_basic_block("done")
        switch = builder.switch(choice, done)
        for number, body in bodies.items():
            block = builder.append_basic_block(f"case{number}")
            switch.add_case(SIZE(number), block)
            builder.position_at_end(block)
            body()
            builder.branch(done)
        builder.position_at_end(done)


def typed_call(
    lanes: types.Type,
    operands: type,
    numbers: set[str],
    emit: Callable[[Emitter, Any], None],
    *,
    packed: int = 0,
) -> tuple:
    """Return what a numba intrinsic returns: its signature and the function that generates its code.

    Args:
        lanes: type of the first argument, a literal number.
        operands: the named tuple of the other arguments, all signed integers: numbers (those in
            ``numbers``) or addresses.
        numbers: names of the integers.
        emit: emits the code; called with the operands, the addresses as pointers.
        packed: the last argument is a tuple of so many operands.
    """
    names = operands._fields
    given = [types.intp] * (len(names) - packed)
    if packed:
        given.append(types.UniTuple(types.intp, packed))

    def generate(target, builder, signature, values):
        emitter = Emitter(builder, lanes.literal_value)
        values = list(values[1:])
        if packed:
            rest = values.pop()
            values += [builder.extract_value(rest, i) for i in range(packed)]
        named = zip(names, values, strict=True)
        emit(emitter, operands(*(v if name in numbers else emitter.pointer(v) for name, v in named)))
        return target.get_dummy_value()

    return types.void(lanes, *given), generate
