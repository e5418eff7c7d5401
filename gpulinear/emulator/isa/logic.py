"""Logic and shifts (PTX ISA 9.7.8).

NumPy defines shifts by the width or more as PTX does: zero, or all sign bits for a signed right shift.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.isa import Form, Semantics, elementwise
from gpulinear.emulator.packed import join
from gpulinear.emulator.types import DTYPES

Array = npt.NDArray[Any]


@elementwise("and.<T:pred|b16|b32|b64>", "=T, T, T", "9.7.8.1")
def bitwise_and(form: Form) -> Semantics:
    return lambda a, b: a & b


@elementwise("or.<T:pred|b16|b32|b64>", "=T, T, T", "9.7.8.2")
def bitwise_or(form: Form) -> Semantics:
    return lambda a, b: a | b


@elementwise("xor.<T:pred|b16|b32|b64>", "=T, T, T", "9.7.8.3")
def bitwise_xor(form: Form) -> Semantics:
    return lambda a, b: a ^ b


@elementwise("not.<T:pred|b16|b32|b64>", "=T, T", "9.7.8.4")
def bitwise_not(form: Form) -> Semantics:
    return lambda a: ~a


@elementwise("cnot.<T:b16|b32|b64>", "=T, T", "9.7.8.5")
def cnot(form: Form) -> Semantics:
    dtype = DTYPES[form["T"]]
    return lambda a: (a == 0).astype(dtype)


def _lop3(a: Array, b: Array, c: Array, table: Array) -> Array:
    """The three-input function of a truth table, as the exclusive or of products of its inputs.

    The Möbius transform of the table tells which products occur: bit 4, 2 and 1 of a product's number stand for the
    factors a, b and c. The table is a constant: a scalar, or a column for several instructions.
    """
    for mask, shift in ((0x55, 1), (0x33, 2), (0x0F, 4)):
        table = table ^ ((table & mask) << shift)
    result: Array = np.uint32(0) - (table & 1)  # product number 0 is all ones
    for number in range(1, 8):
        chosen = np.uint32(0) - ((table >> number) & 1)
        if np.any(chosen):
            for factor, bit in ((a, 4), (b, 2), (c, 1)):
                if number & bit:
                    chosen = chosen & factor
            result = result ^ chosen
    return result


@elementwise("lop3.b32", "=b32, b32, b32, b32, u32", "9.7.8.6")
def lop3(form: Form) -> Semantics:
    return _lop3


@elementwise("lop3.<bool:or|and>.b32", "=b32|=pred, b32, b32, b32, u32, pred", "9.7.8.6")
def lop3_bool(form: Form) -> Semantics:
    combine = np.logical_or if form["bool"] == "or" else np.logical_and

    def both(a: Array, b: Array, c: Array, table: Array, q: Array) -> tuple[Array, Array]:
        d = _lop3(a, b, c, table)
        return d, combine(d != 0, q)

    return both


@elementwise("shf.<dir:l|r>.<mode:clamp|wrap>.b32", "=b32, b32, b32, u32", "9.7.8.7")
def shf(form: Form) -> Semantics:
    left, clamp = form["dir"] == "l", form["mode"] == "clamp"

    def funnel(a: Array, b: Array, c: Array) -> Array:
        n = (np.minimum(c, np.uint32(32)) if clamp else c & 31).astype(np.uint64)
        pair = join(a, b, 32)
        return ((pair << n) >> 32 if left else pair >> n).astype(np.uint32)

    return funnel


@elementwise("shl.<T:b16|b32|b64>", "=T, T, u32", "9.7.8.8")
def shl(form: Form) -> Semantics:
    dtype = DTYPES[form["T"]]
    if form["T"] == "b16":  # in 16 bits an amount would lose its upper half
        return lambda a, b: (a << b).astype(dtype)
    return lambda a, b: a << b


@elementwise("shr.<T:b16|b32|b64|u16|u32|u64|s16|s32|s64>", "=T, T, u32", "9.7.8.9")
def shr(form: Form) -> Semantics:
    dtype = DTYPES[form["T"]]
    if form["T"] == "s32":  # an amount above 2^31 is negative here, which NumPy treats as too large
        return lambda a, b: a >> b.view(np.int32)
    if form["T"] in ("b16", "u16", "s16"):
        return lambda a, b: (a >> b).astype(dtype)
    return lambda a, b: a >> b
