"""The quantizers' operations on activations as loops for numba, which runs them on all cores.

Activations do not fit into the caches, so a training step takes as long as its passes over memory. Every
loop therefore reads and writes each number once.

Shapes: B samples, R rows of N = width * channels numbers in memory order (channels last), C channels, K
widths. Numbers are float32, or bfloat16 as uint16. Sums are partial, one per row, so that they do not
depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic, overload


@intrinsic
def _float_of_bits(context: Any, bits: Any) -> Any:
    """Return the float32 with the bits of a uint32."""

    def generate(target: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], target.get_value_type(types.float32))

    return types.float32(types.uint32), generate


@intrinsic
def _bits_of_float(context: Any, value: Any) -> Any:
    """Return the bits of a float32 as uint32."""

    def generate(target: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], target.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


def _read(array, i):
    """Return a number of a float32 or bfloat16 array as float32."""


@overload(_read, inline="always")
def _compile_read(array, i):
    if array.dtype == types.uint16:
        return lambda array, i: _float_of_bits(np.uint32(array[i]) << np.uint32(16))
    return lambda array, i: array[i]


def _write(array, i, value):
    """Write a float32 to an array of float32 or, rounded to nearest even, bfloat16."""


@overload(_write, inline="always")
def _compile_write(array, i, value):
    if array.dtype == types.uint16:

        def write(array, i, value):
            bits = _bits_of_float(value)
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            array[i] = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

        return write

    def write(array, i, value):
        array[i] = value

    return write


def encode(x, inverse, bound, scale, out):
    """Write round(clip(x)) * scale.

    Args:
        x, out: (B,R,N).
        inverse: (B,) n / alpha.
        bound: (B,) n.
        scale: (B,) 1 for codes, alpha / n for values.
    """
    for item in prange(x.shape[0] * x.shape[1]):
        b, r = item // x.shape[1], item % x.shape[1]
        source, target = x[b, r], out[b, r]
        factor, high, step = inverse[b], bound[b], scale[b]
        for i in range(source.size):
            # comparisons instead of min and max, so that NaN stays NaN
            code = np.rint(source[i] * factor)
            code = high if code > high else code
            code = -high if code < -high else code
            _write(target, i, code * step)


def encode_gradient(grad, x, alpha, slope, grad_x, clipped):
    """Write grad * slope inside the clip, 0 outside, and sums of sign(x) * grad * slope outside.

    Args:
        grad, x, grad_x: (B,R,N).
        alpha, slope: (B,).
        clipped: (B,R) sums.
    """
    for item in prange(x.shape[0] * x.shape[1]):
        b, r = item // x.shape[1], item % x.shape[1]
        read, source, target = grad[b, r], x[b, r], grad_x[b, r]
        clip, factor = alpha[b], slope[b]
        total = np.float32(0)
        for i in range(source.size):
            value = _read(read, i) * factor
            inside = abs(source[i]) < clip
            target[i] = value if inside else np.float32(0)
            signed = value if source[i] > 0 else -value
            total += np.float32(0) if inside else signed
        clipped[b, r] = total


def mixture_gradient(grad, x, alphas, levels, probabilities, slope, grad_x, clipped, coded):
    """Write the gradient of the mixture of all widths, and the sums for alphas and probabilities.

    Args:
        grad, x, grad_x: (B,R,N).
        alphas, levels: (K,).
        probabilities: (B,K).
        slope: (B,).
        clipped: (B,R,K) sums of grad * sign(x) outside the clip of each width.
        coded: (B,R,K) sums of grad * codes at each width.
    """
    for item in prange(x.shape[0] * x.shape[1]):
        b, r = item // x.shape[1], item % x.shape[1]
        read, source, target = grad[b, r], x[b, r], grad_x[b, r]
        for i in range(source.size):
            target[i] = np.float32(1)
        for k in range(alphas.size):
            clip, level, share = alphas[k], levels[k], probabilities[b, k]
            inverse = level / clip
            outside_sum, code_sum = np.float32(0), np.float32(0)
            for i in range(source.size):
                magnitude = abs(source[i])
                value = _read(read, i)
                signed = value if source[i] > 0 else -value
                outside = magnitude >= clip
                target[i] -= share if outside else np.float32(0)
                outside_sum += signed if outside else np.float32(0)
                code = np.rint(magnitude * inverse)
                code_sum += signed * (level if code > level else code)
            clipped[b, r, k] = outside_sum
            coded[b, r, k] = code_sum
        factor = slope[b]
        for i in range(source.size):
            target[i] *= _read(read, i) * factor


def rescale(y, scale, bias, out):
    """Write y * scale + bias.

    Args:
        y, out: (B,R,N), N a multiple of C.
        scale: (B,C).
        bias: (C,).
    """
    channels = bias.size
    for item in prange(y.shape[0] * y.shape[1]):
        b, r = item // y.shape[1], item % y.shape[1]
        factors = scale[b]
        for start in range(0, y.shape[2], channels):
            # slices, because the compiler does not vectorise indices that begin at start
            source, target = y[b, r, start : start + channels], out[b, r, start : start + channels]
            for c in range(channels):
                target[c] = bias[c] + _read(source, c) * factors[c]


def rescale_gradient(grad, scale, grad_y, bias_sums):
    """Write grad * scale, and sums of grad over each row for every channel.

    Args:
        grad, grad_y: (B,R,N).
        scale: (B,C).
        bias_sums: (B,R,C), zeros.
    """
    channels = bias_sums.shape[2]
    for item in prange(grad.shape[0] * grad.shape[1]):
        b, r = item // grad.shape[1], item % grad.shape[1]
        sums, factors = bias_sums[b, r], scale[b]
        for start in range(0, grad.shape[2], channels):
            source, target = grad[b, r, start : start + channels], grad_y[b, r, start : start + channels]
            for c in range(channels):
                sums[c] += source[c]
                _write(target, c, source[c] * factors[c])
