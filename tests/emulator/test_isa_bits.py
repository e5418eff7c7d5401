"""Bit counting and bit fields against the loops of the PTX ISA (9.7.1.14 to 9.7.1.22), written on Python integers."""

from __future__ import annotations

import pytest

from tests.emulator.semantics import edges, evaluate, signed, sweep

POSITIONS = [0, 1, 5, 15, 16, 31, 32, 33, 63, 64, 65, 200, 255, 256, 256 + 3, 2**31, 2**32 - 1]


def bit(value, position):
    return (value >> position) & 1


@pytest.mark.parametrize("bits", [32, 64])
def test_counting(bits):
    kind = f"b{bits}"
    sweep(f"popc.{kind}", "u32", [kind], lambda a: bin(a).count("1"))
    sweep(f"clz.{kind}", "u32", [kind], lambda a: bits - a.bit_length())
    sweep(f"brev.{kind}", kind, [kind], lambda a: int(f"{a:0{bits}b}"[::-1], 2))
    powers = [1 << i for i in range(bits)]
    assert evaluate(f"clz.{kind}", powers).tolist() == list(range(bits))[::-1]
    assert evaluate(f"brev.{kind}", powers).tolist() == powers[::-1]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bfind(kind):
    msb = int(kind[1:]) - 1

    def find(a):
        a = ~a if a < 0 else a
        return a.bit_length() - 1  # -1 is all ones

    def shift_amount(a):
        return find(a) if find(a) < 0 else msb - find(a)

    sweep(f"bfind.{kind}", "u32", [kind], find)
    sweep(f"bfind.shiftamt.{kind}", "u32", [kind], shift_amount)


def test_fns():
    def find(mask, base, offset):
        if offset == 0:
            return base if bit(mask, base) else -1
        count, position = abs(offset) - 1, base
        while 0 <= position < 32:
            if bit(mask, position):
                if count == 0:
                    return position
                count -= 1
            position += 1 if offset > 0 else -1
        return -1

    offsets = [0, 1, -1, 2, -2, 16, -16, 32, 33, -(2**31), 2**31 - 1]
    sweep("fns.b32", "b32", ["b32", "b32", "s32"], find, at1=[0, 1, 7, 30, 31], at2=offsets)
    assert evaluate("fns.b32", [0xAAAAAAAA] * 4, [3, 3, 2, 2], [1, -1, 1, -1]).tolist() == [3, 3, 3, 1]
    assert evaluate("fns.b32", [0xFFFFFFFF], [32], [1]).tolist() == [0xFFFFFFFF]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bfe(kind):
    msb = int(kind[1:]) - 1

    def extract(a, start, length):
        start, length = start & 0xFF, length & 0xFF
        sign = 0 if kind[0] == "u" or length == 0 else bit(a, min(start + length - 1, msb))
        return sum((bit(a, start + i) if i < length and start + i <= msb else sign) << i for i in range(msb + 1))

    sweep(f"bfe.{kind}", kind, [kind, "u32", "u32"], extract, at1=POSITIONS, at2=POSITIONS)


@pytest.mark.parametrize("bits", [32, 64])
def test_bfi(bits):
    def insert(a, b, start, length):
        start, length = start & 0xFF, length & 0xFF
        for i in range(min(length, max(0, bits - start))):
            b = (b & ~(1 << (start + i))) | bit(a, i) << (start + i)
        return b

    kind = f"b{bits}"
    values = edges(kind)[::3]
    sweep(f"bfi.{kind}", kind, [kind, kind, "u32", "u32"], insert, at0=values, at1=values, at2=POSITIONS, at3=POSITIONS)


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_szext(kind, mode):
    def extend(a, n):
        n = min(n, 32) if mode == "clamp" else n & 31
        low = a & ((1 << n) - 1)
        return signed(low, n) if kind == "s32" and n else low

    sweep(f"szext.{mode}.{kind}", kind, [kind, "u32"], extend, at1=POSITIONS)
    assert evaluate(f"szext.wrap.{kind}", [-1], [0]).tolist() == [0]


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_bmsk(mode):
    def mask(a, b):
        a1, b1 = a & 31, b & 31
        mask0 = (0xFFFFFFFF << a1) & 0xFFFFFFFF
        mask1 = (0xFFFFFFFF << (a1 + b1)) & 0xFFFFFFFF
        overflow = a1 + b1 >= 32
        if mode == "clamp":
            mask0 = 0 if a >= 32 else mask0
            overflow = overflow or a >= 32 or b >= 32
        mask1 = 0 if overflow else 0xFFFFFFFF if b1 == 0 else mask1
        return mask0 & ~mask1

    sweep(f"bmsk.{mode}.b32", "b32", ["u32", "u32"], mask, at0=POSITIONS, at1=POSITIONS)
    assert evaluate("bmsk.wrap.b32", [1], [2]).tolist() == [6]
