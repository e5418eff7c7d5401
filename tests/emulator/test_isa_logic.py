"""Logic and shifts against Python's integers (PTX ISA 9.7.8)."""

from __future__ import annotations

import operator

import numpy as np
import pytest

from gpulinear.emulator.errors import NotModelledError
from tests.emulator.semantics import evaluate, sweep

AMOUNTS = [0, 1, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 2**31, 2**32 - 1]


@pytest.mark.parametrize("kind", ["pred", "b16", "b32", "b64"])
def test_bitwise(kind):
    sweep(f"and.{kind}", kind, [kind] * 2, operator.and_)
    sweep(f"or.{kind}", kind, [kind] * 2, operator.or_)
    sweep(f"xor.{kind}", kind, [kind] * 2, operator.xor)
    sweep(f"not.{kind}", kind, [kind], lambda a: ~a)
    if kind != "pred":
        sweep(f"cnot.{kind}", kind, [kind], lambda a: a == 0)


def test_lop3_has_every_truth_table():
    a, b, c = 0xF0, 0xCC, 0xAA
    for table in range(256):
        assert int(evaluate("lop3.b32", a, b, c, table)) & 0xFF == table
    a, b, c = 0x12345678, 0xFEDCBA98, 0x0F1E2D3C
    assert evaluate("lop3.b32", [a], [b], [c], 0x1A).tolist() == [(a & b | c) ^ a]
    # A batch of instructions with tables of their own, as a column.
    tables = [0x80, 0xFE, 0x96, 0, 0xFF]
    want = [a & b & c, a | b | c, a ^ b ^ c, 0, 0xFFFFFFFF]
    assert evaluate("lop3.b32", [a] * 5, [b] * 5, [c] * 5, tables).tolist() == want


def test_lop3_with_a_predicate():
    a, q = [0, 0, 3, 3], [0, 1, 0, 1]
    for name, want in (("or", [0, 1, 1, 1]), ("and", [0, 0, 0, 1])):
        d, p = evaluate(f"lop3.{name}.b32", a, [1] * 4, [0] * 4, 0xF0, q, outputs=2)
        assert d.tolist() == a and p.tolist() == want
    with pytest.raises(NotModelledError):
        evaluate("lop3.xor.b32", a, a, a, 0xF0, q, outputs=2)


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_funnel_shifts(mode):
    def n(c):
        return min(c, 32) if mode == "clamp" else c & 31

    def left(a, b, c):
        return ((b << 32 | a) << n(c)) >> 32

    def right(a, b, c):
        return (b << 32 | a) >> n(c)

    sweep(f"shf.l.{mode}.b32", "b32", ["b32", "b32", "u32"], left, at2=AMOUNTS)
    sweep(f"shf.r.{mode}.b32", "b32", ["b32", "b32", "u32"], right, at2=AMOUNTS)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shift_amounts_clamp(bits):
    sweep(f"shl.b{bits}", f"b{bits}", [f"b{bits}", "u32"], lambda a, n: a << min(n, bits), at1=AMOUNTS)
    for kind in "bus":
        kind += str(bits)
        sweep(f"shr.{kind}", kind, [kind, "u32"], lambda a, n: a >> min(n, bits), at1=AMOUNTS)


def test_numpy_defines_shifts_by_the_width_and_more():
    for dtype in (np.uint32, np.int32, np.uint64, np.int64):
        bits = 8 * np.dtype(dtype).itemsize
        x = np.full(100, -1 if dtype in (np.int32, np.int64) else 12345, dtype)
        for amount in (bits, bits + 1, 2**31 - 1):
            assert not (x << dtype(amount)).any()
            assert ((x >> dtype(amount)) == (-1 if x[0] < 0 else 0)).all()


def test_a_literal_amount_is_the_same_for_all_lanes():
    assert evaluate("shl.b32", [1, 2, 3], 4).tolist() == [16, 32, 48]
    assert evaluate("shr.s32", [-1, -16, 16], 2).tolist() == [-1, -4, 4]
