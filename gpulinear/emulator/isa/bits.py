"""Bit counting and bit fields (PTX ISA 9.7.1.14 to 9.7.1.22).

NumPy defines shifts by the width or more as PTX does: zero, or all sign bits for a signed right shift.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator.isa import Form, Semantics, elementwise
from gpulinear.emulator.types import DTYPES

Array = npt.NDArray[Any]

_NONE = np.uint32(0xFFFFFFFF)  # what bfind and fns return when there is no such bit


def _bit_length(x: Array) -> Array:
    """The position of the highest one bit of unsigned integers, plus one; 0 for zero."""
    for shift in (1, 2, 4, 8, 16, 32)[: 5 if x.dtype.itemsize == 4 else 6]:
        x = x | (x >> shift)
    length: Array = np.bitwise_count(x).astype(np.uint32)
    return length


@elementwise("popc.<T:b32|b64>", "=u32, T", "9.7.1.14")
def popc(form: Form) -> Semantics:
    return lambda a: np.bitwise_count(a).astype(np.uint32)


@elementwise("clz.<T:b32|b64>", "=u32, T", "9.7.1.15")
def clz(form: Form) -> Semantics:
    width = np.uint32(form["T"][1:])
    return lambda a: width - _bit_length(a)


@elementwise("bfind[.shiftamt].<T:u32|s32|u64|s64>", "=u32, T", "9.7.1.16")
def bfind(form: Form) -> Semantics:
    width, unsigned = int(form["T"][1:]), DTYPES["u" + form["T"][1:]]

    def position(a: Array) -> Array:
        if a.dtype.kind == "i":
            a = a ^ (a >> (width - 1))  # a negative number's highest zero bit is the highest one of its complement
        highest: Array = _bit_length(a.view(unsigned)) - np.uint32(1)  # all ones if there is none
        return highest

    if not form["shiftamt"]:
        return position

    def shift_amount(a: Array) -> Array:
        found = position(a)
        return np.where(found == _NONE, found, np.uint32(width - 1) - found)

    return shift_amount


@elementwise("fns.b32", "=b32, b32, b32, s32", "9.7.1.17")
def fns(form: Form) -> Semantics:
    """The offset-th set bit from base on, upward or downward; a base above 31 finds nothing (it is undefined)."""

    def find(mask: Array, base: Array, offset: Array) -> Array:
        mask, base, offset = np.broadcast_arrays(mask, base, offset)
        left = np.maximum(np.abs(offset.astype(np.int64)), 1)
        step = np.sign(offset).astype(np.int64)
        found = np.full(mask.shape, _NONE)
        at = base.astype(np.int64)
        for _ in range(32):
            inside = (at >= 0) & (at < 32)
            left = left - (inside & ((mask >> np.where(inside, at, 0).astype(np.uint32)) & 1 == 1))
            found = np.where(inside & (left == 0) & (found == _NONE), at.astype(np.uint32), found)
            at = np.where(step == 0, 32, at + step)
        return found

    return find


@elementwise("brev.<T:b32|b64>", "=T, T", "9.7.1.18")
def brev(form: Form) -> Semantics:
    width = int(form["T"][1:])
    whole = (1 << width) - 1
    steps = [1 << i for i in range(width.bit_length() - 1)]
    # whole // (2^s + 1) has ones and zeros in alternating runs of s bits, beginning with ones at the low end.
    swaps = [(shift, whole // ((1 << shift) + 1)) for shift in steps]

    def reverse(a: Array) -> Array:
        for shift, mask in swaps:
            a = ((a >> shift) & mask) | ((a & mask) << shift)
        return a

    return reverse


@elementwise("bfe.<T:u32|s32|u64|s64>", "=T, T, u32, u32", "9.7.1.19")
def bfe(form: Form) -> Semantics:
    dtype, width = DTYPES[form["T"]], int(form["T"][1:])

    def extract(a: Array, start: Array, length: Array) -> Array:
        # Upward until the field's top bit is on top, downward again: the shift fills with zeros or with that bit.
        up = (width - np.minimum(length & 0xFF, np.uint32(width))).astype(dtype)
        field: Array = ((a >> (start & 0xFF).astype(dtype)) << up) >> up
        return field

    return extract


@elementwise("bfi.<T:b32|b64>", "=T, T, T, u32, u32", "9.7.1.20")
def bfi(form: Form) -> Semantics:
    dtype = DTYPES[form["T"]]
    one = dtype.type(1)

    def insert(a: Array, b: Array, start: Array, length: Array) -> Array:
        start = (start & 0xFF).astype(dtype)
        mask = ((one << (length & 0xFF).astype(dtype)) - one) << start
        merged: Array = b ^ ((b ^ (a << start)) & mask)
        return merged

    return insert


@elementwise("szext.<mode:clamp|wrap>.<T:u32|s32>", "=T, T, u32", "9.7.1.21")
def szext(form: Form) -> Semantics:
    dtype, clamp = DTYPES[form["T"]], form["mode"] == "clamp"

    def extend(a: Array, length: Array) -> Array:
        length = np.minimum(length, np.uint32(32)) if clamp else length & 31
        up = (32 - length).astype(dtype)
        extended: Array = (a << up) >> up
        return extended

    return extend


@elementwise("bmsk.<mode:clamp|wrap>.b32", "=b32, u32, u32", "9.7.1.22")
def bmsk(form: Form) -> Semantics:
    clamp = form["mode"] == "clamp"
    one = np.uint32(1)

    def mask(start: Array, length: Array) -> Array:
        if not clamp:
            start, length = start & 31, length & 31
        ones: Array = ((one << length) - one) << start
        return ones

    return mask
