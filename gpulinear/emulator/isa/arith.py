"""Integer arithmetic (PTX ISA 9.7.1.1 to 9.7.1.13, 9.7.1.23, 9.7.1.24): all results wrap unless ``.sat`` is given.

Not modelled: the carry variants of 9.7.2 (add.cc, addc, sub.cc, subc, mad.cc, madc), which keep state between
instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.conversions import saturate_integer
from gpulinear.emulator.isa import Form, Semantics, elementwise
from gpulinear.emulator.packed import pairwise, split
from gpulinear.emulator.types import DTYPES

Array = npt.NDArray[Any]

_S32 = np.dtype(np.int32)
_WIDE = {"u16": np.uint32, "s16": np.int32, "u32": np.uint64, "s32": np.int64}


@elementwise("add.<T:u16|s16|u32|s32|u64|s64>", "=T, T, T", "9.7.1.1")
def add(form: Form) -> Semantics:
    return lambda a, b: a + b


@elementwise("add.sat.s32", "=s32, s32, s32", "9.7.1.1")
def add_sat(form: Form) -> Semantics:
    return lambda a, b: saturate_integer(a.astype(np.int64) + b, _S32)


@elementwise("add.<T:u16x2|s16x2>", "=b32, b32, b32", "9.7.1.1")
def add_x2(form: Form) -> Semantics:
    return pairwise(lambda a, b: a + b)


@elementwise("sub.<T:u16|s16|u32|s32|u64|s64>", "=T, T, T", "9.7.1.2")
def sub(form: Form) -> Semantics:
    return lambda a, b: a - b


@elementwise("sub.sat.s32", "=s32, s32, s32", "9.7.1.2")
def sub_sat(form: Form) -> Semantics:
    return lambda a, b: saturate_integer(a.astype(np.int64) - b, _S32)


# ------------------------------------------------------------------------------------- products


def _product_high(a: Array, b: Array) -> Array:
    """The upper half of the exact product of two integers of one type."""
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        product = a.astype(wide) * b.astype(wide)
        return (product >> bits).astype(a.dtype)
    x, y = a.view(np.uint64), b.view(np.uint64)
    (x0, x1), (y0, y1) = split(x, 32), split(y, 32)
    x0, x1, y0, y1 = (part.astype(np.uint64) for part in (x0, x1, y0, y1))
    # Long multiplication with 32-bit digits; no sum below can overflow.
    middle = x1 * y0 + ((x0 * y0) >> 32)
    high = x1 * y1 + (middle >> 32) + ((x0 * y1 + (middle & 0xFFFFFFFF)) >> 32)
    if a.dtype.kind == "i":
        # A negative factor -n is 2^64 - n as an unsigned number: it has added the other factor once too often.
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    result: Array = high.view(a.dtype)
    return result


@elementwise("mul.lo.<T:u16|s16|u32|s32|u64|s64>", "=T, T, T", "9.7.1.3")
def mul_lo(form: Form) -> Semantics:
    return lambda a, b: a * b


@elementwise("mul.hi.<T:u16|s16|u32|s32|u64|s64>", "=T, T, T", "9.7.1.3")
def mul_hi(form: Form) -> Semantics:
    return _product_high


@elementwise("mul.wide.<T:u16|s16|u32|s32>", "=wide(T), T, T", "9.7.1.3")
def mul_wide(form: Form) -> Semantics:
    wide = _WIDE[form["T"]]
    return lambda a, b: a.astype(wide) * b


@elementwise("mad.lo.<T:u16|s16|u32|s32|u64|s64>", "=T, T, T, T", "9.7.1.4")
def mad_lo(form: Form) -> Semantics:
    return lambda a, b, c: a * b + c


@elementwise("mad.hi.<T:u16|s16|u32|s32|u64|s64>", "=T, T, T, T", "9.7.1.4")
def mad_hi(form: Form) -> Semantics:
    return lambda a, b, c: _product_high(a, b) + c


@elementwise("mad.hi.sat.s32", "=s32, s32, s32, s32", "9.7.1.4")
def mad_hi_sat(form: Form) -> Semantics:
    return lambda a, b, c: saturate_integer(_product_high(a, b).astype(np.int64) + c, _S32)


@elementwise("mad.wide.<T:u16|s16|u32|s32>", "=wide(T), T, T, wide(T)", "9.7.1.4")
def mad_wide(form: Form) -> Semantics:
    wide = _WIDE[form["T"]]
    return lambda a, b, c: a.astype(wide) * b + c


def _product24(a: Array, b: Array) -> Array:
    """The 48-bit product of the low 24 bits of both, extended by their type to 64 bits."""
    wide = np.int64 if a.dtype.kind == "i" else np.uint64
    product: Array = ((a << 8) >> 8).astype(wide) * ((b << 8) >> 8).astype(wide)
    return product


@elementwise("mul24.<part:lo|hi>.<T:u32|s32>", "=T, T, T", "9.7.1.5")
def mul24(form: Form) -> Semantics:
    dtype, shift = DTYPES[form["T"]], 16 if form["part"] == "hi" else 0
    return lambda a, b: (_product24(a, b) >> shift).astype(dtype)


@elementwise("mad24.<part:lo|hi>.<T:u32|s32>", "=T, T, T, T", "9.7.1.6")
def mad24(form: Form) -> Semantics:
    dtype, shift = DTYPES[form["T"]], 16 if form["part"] == "hi" else 0
    return lambda a, b, c: (_product24(a, b) >> shift).astype(dtype) + c


@elementwise("mad24.hi.sat.s32", "=s32, s32, s32, s32", "9.7.1.6")
def mad24_hi_sat(form: Form) -> Semantics:
    return lambda a, b, c: saturate_integer((_product24(a, b) >> 16) + c, _S32)


# ------------------------------------------------------------------- differences, quotients, order


@elementwise("sad.<T:u16|s16|u32|s32|u64|s64>", "=T, T, T, T", "9.7.1.7")
def sad(form: Form) -> Semantics:
    return lambda a, b, c: c + np.where(a < b, b - a, a - b)


def _all_ones(r: Array, b: Array) -> Array:
    """Division by zero is unspecified; what the compiler's division sequences give for it is all ones."""
    zero = b == 0
    return np.where(zero, ~r.dtype.type(0), r) if np.count_nonzero(zero) else r


@elementwise("div.<T:u16|u32|u64>", "=T, T, T", "9.7.1.8")
def div_unsigned(form: Form) -> Semantics:
    return lambda a, b: _all_ones(a // b, b)


@elementwise("div.<T:s16|s32|s64>", "=T, T, T", "9.7.1.8")
def div_signed(form: Form) -> Semantics:
    # The quotient is rounded toward zero, as in C: a without its remainder divides exactly.
    return lambda a, b: _all_ones((a - np.fmod(a, b)) // b, b)


@elementwise("rem.<T:u16|s16|u32|s32|u64|s64>", "=T, T, T", "9.7.1.9")
def rem(form: Form) -> Semantics:
    return lambda a, b: _all_ones(np.fmod(a, b), b)


@elementwise("abs.<T:s16|s32|s64>", "=T, T", "9.7.1.10")
def absolute(form: Form) -> Semantics:
    return np.abs


@elementwise("neg.<T:s16|s32|s64>", "=T, T", "9.7.1.11")
def neg(form: Form) -> Semantics:
    return lambda a: -a


def _clamped(extreme: Any, form: Form) -> Semantics:
    """min or max, with ``.relu``: no result below zero."""
    return (lambda a, b: np.maximum(extreme(a, b), a.dtype.type(0))) if form.get("relu") else extreme


def _halves(extreme: Any, form: Form) -> Semantics:
    part = DTYPES[form["T"].removesuffix("x2")]
    inner = _clamped(extreme, form)
    return pairwise(lambda a, b: inner(a.view(part), b.view(part)))


@elementwise("min.<T:u16|u32|u64|s16|s64>", "=T, T, T", "9.7.1.12")
@elementwise("min[.relu].<T:s32>", "=T, T, T", "9.7.1.12")
def minimum(form: Form) -> Semantics:
    return _clamped(np.minimum, form)


@elementwise("min.<T:u16x2>", "=b32, b32, b32", "9.7.1.12")
@elementwise("min[.relu].<T:s16x2>", "=b32, b32, b32", "9.7.1.12")
def minimum_x2(form: Form) -> Semantics:
    return _halves(np.minimum, form)


@elementwise("max.<T:u16|u32|u64|s16|s64>", "=T, T, T", "9.7.1.13")
@elementwise("max[.relu].<T:s32>", "=T, T, T", "9.7.1.13")
def maximum(form: Form) -> Semantics:
    return _clamped(np.maximum, form)


@elementwise("max.<T:u16x2>", "=b32, b32, b32", "9.7.1.13")
@elementwise("max[.relu].<T:s16x2>", "=b32, b32, b32", "9.7.1.13")
def maximum_x2(form: Form) -> Semantics:
    return _halves(np.maximum, form)


# ----------------------------------------------------------------------------------- dot products


def _bytes(word: Array, count: int, width: int, signed: bool) -> list[Array]:
    """The first ``count`` fields of ``width`` bits, each extended to 32 bits by its signedness."""
    source = word.view(np.int32) if signed else word.view(np.uint32)
    top = 32 - width
    return [((source << (top - width * i)) >> top).view(np.int32) for i in range(count)]


def _dot(form: Form, shift: int, width: int, count: int) -> Semantics:
    """c plus the sum of products of fields; sums wrap in 32 bits, so their signedness does not matter."""
    a_signed, b_signed = form["A"] == "s32", form["B"] == "s32"
    result = np.int32 if a_signed or b_signed else np.uint32

    def dot(a: Array, b: Array, c: Array) -> Array:
        total: Array = c.view(np.int32)
        fields = zip(_bytes(a, count, width, a_signed), _bytes(b >> shift, count, 8, b_signed), strict=True)
        for x, y in fields:
            total = total + x * y
        return total.view(result)

    return dot


@elementwise("dp4a.<A:u32>.<B:u32>", "=u32, A, B, u32", "9.7.1.23")
@elementwise("dp4a.<A:u32>.<B:s32>", "=s32, A, B, s32", "9.7.1.23")
@elementwise("dp4a.<A:s32>.<B:u32|s32>", "=s32, A, B, s32", "9.7.1.23")
def dp4a(form: Form) -> Semantics:
    return _dot(form, 0, 8, 4)


@elementwise("dp2a.<part:lo|hi>.<A:u32>.<B:u32>", "=u32, A, B, u32", "9.7.1.24")
@elementwise("dp2a.<part:lo|hi>.<A:u32>.<B:s32>", "=s32, A, B, s32", "9.7.1.24")
@elementwise("dp2a.<part:lo|hi>.<A:s32>.<B:u32|s32>", "=s32, A, B, s32", "9.7.1.24")
def dp2a(form: Form) -> Semantics:
    return _dot(form, 16 if form["part"] == "hi" else 0, 16, 2)
