"""Integer arithmetic against Python's integers, on the ends of every type (PTX ISA 9.7.1)."""

from __future__ import annotations

import pytest

from gpulinear.emulator.errors import NotModelledError
from tests.emulator.semantics import evaluate, signed, sweep

INTS = ["u16", "s16", "u32", "s32", "u64", "s64"]
SIGNED = ["s16", "s32", "s64"]


def width(kind):
    return int(kind[1:])


def clamp(value, low, high):
    return max(low, min(high, value))


def clamp_s32(value):
    return clamp(value, -(2**31), 2**31 - 1)


def quotient(a, b):
    """Rounded toward zero, and all ones for division by zero."""
    if b == 0:
        return -1
    return abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)


def remainder(a, b):
    return -1 if b == 0 else a - quotient(a, b) * b


def low_high(function, kind):
    """A function of 16-bit integers on both halves of a 32-bit one."""
    read = (lambda v: signed(v, 16)) if kind[0] == "s" else (lambda v: v & 0xFFFF)

    def both(*words):
        low = function(*[read(w) for w in words]) & 0xFFFF
        return low | (function(*[read(w >> 16) for w in words]) & 0xFFFF) << 16

    return both


@pytest.mark.parametrize("kind", INTS)
def test_sums_and_differences_wrap(kind):
    sweep(f"add.{kind}", kind, [kind] * 2, lambda a, b: a + b)
    sweep(f"sub.{kind}", kind, [kind] * 2, lambda a, b: a - b)


def test_saturated_sums():
    sweep("add.sat.s32", "s32", ["s32"] * 2, lambda a, b: clamp_s32(a + b))
    sweep("sub.sat.s32", "s32", ["s32"] * 2, lambda a, b: clamp_s32(a - b))


@pytest.mark.parametrize("kind", INTS)
def test_products(kind):
    n = width(kind)
    sweep(f"mul.lo.{kind}", kind, [kind] * 2, lambda a, b: a * b)
    sweep(f"mul.hi.{kind}", kind, [kind] * 2, lambda a, b: (a * b) >> n)
    sweep(f"mad.lo.{kind}", kind, [kind] * 3, lambda a, b, c: a * b + c)
    sweep(f"mad.hi.{kind}", kind, [kind] * 3, lambda a, b, c: ((a * b) >> n) + c)


@pytest.mark.parametrize("kind", INTS[:4])
def test_wide_products(kind):
    wide = kind[0] + str(2 * width(kind))
    sweep(f"mul.wide.{kind}", wide, [kind] * 2, lambda a, b: a * b)
    sweep(f"mad.wide.{kind}", wide, [kind, kind, wide], lambda a, b, c: a * b + c)


def test_saturated_high_product():
    sweep("mad.hi.sat.s32", "s32", ["s32"] * 3, lambda a, b, c: clamp_s32(((a * b) >> 32) + c))


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_24_bit_products_ignore_the_upper_byte(kind):
    read = (lambda v: signed(v, 24)) if kind == "s32" else (lambda v: v & 0xFFFFFF)
    values = [0, 1, 2**23 - 1, 2**23, 2**24 - 1, 2**24, 0x12ABCDEF, 2**31]
    values = [signed(v, 32) for v in values] if kind == "s32" else values
    operands = {"at0": values, "at1": values}
    sweep(f"mul24.lo.{kind}", kind, [kind] * 2, lambda a, b: read(a) * read(b), **operands)
    sweep(f"mul24.hi.{kind}", kind, [kind] * 2, lambda a, b: (read(a) * read(b)) >> 16, **operands)
    sweep(f"mad24.lo.{kind}", kind, [kind] * 3, lambda a, b, c: read(a) * read(b) + c, **operands)
    sweep(f"mad24.hi.{kind}", kind, [kind] * 3, lambda a, b, c: ((read(a) * read(b)) >> 16) + c, **operands)
    if kind == "s32":
        exact = lambda a, b, c: clamp_s32(((read(a) * read(b)) >> 16) + c)  # noqa: E731
        sweep("mad24.hi.sat.s32", "s32", ["s32"] * 3, exact, **operands)


@pytest.mark.parametrize("kind", INTS)
def test_sum_of_absolute_differences(kind):
    sweep(f"sad.{kind}", kind, [kind] * 3, lambda a, b, c: c + abs(a - b))


@pytest.mark.parametrize("kind", INTS)
def test_division_rounds_toward_zero_and_division_by_zero_gives_all_ones(kind):
    sweep(f"div.{kind}", kind, [kind] * 2, quotient)
    sweep(f"rem.{kind}", kind, [kind] * 2, remainder)


@pytest.mark.parametrize("kind", SIGNED)
def test_abs_and_neg_of_the_smallest_number_wrap(kind):
    sweep(f"abs.{kind}", kind, [kind], abs)
    sweep(f"neg.{kind}", kind, [kind], lambda a: -a)
    low = -(2 ** (width(kind) - 1))
    assert evaluate(f"abs.{kind}", [low]).tolist() == [low]


@pytest.mark.parametrize("kind", INTS)
def test_min_max(kind):
    sweep(f"min.{kind}", kind, [kind] * 2, min)
    sweep(f"max.{kind}", kind, [kind] * 2, max)


def test_relu_keeps_min_and_max_from_going_below_zero():
    sweep("min.relu.s32", "s32", ["s32"] * 2, lambda a, b: max(0, min(a, b)))
    sweep("max.relu.s32", "s32", ["s32"] * 2, lambda a, b: max(0, a, b))
    sweep("min.relu.s16x2", "b32", ["b32"] * 2, low_high(lambda a, b: max(0, min(a, b)), "s16"))
    sweep("max.relu.s16x2", "b32", ["b32"] * 2, low_high(lambda a, b: max(0, a, b), "s16"))


@pytest.mark.parametrize("kind", ["u16", "s16"])
def test_pairs_of_16_bit_integers(kind):
    sweep(f"add.{kind}x2", "b32", ["b32"] * 2, low_high(lambda a, b: a + b, kind))
    sweep(f"min.{kind}x2", "b32", ["b32"] * 2, low_high(min, kind))
    sweep(f"max.{kind}x2", "b32", ["b32"] * 2, low_high(max, kind))


def fields(word, count, bits, kind):
    parts = [(word >> (bits * i)) & ((1 << bits) - 1) for i in range(count)]
    return [signed(p, bits) for p in parts] if kind[0] == "s" else parts


@pytest.mark.parametrize("b_kind", ["u32", "s32"])
@pytest.mark.parametrize("a_kind", ["u32", "s32"])
def test_dot_products(a_kind, b_kind):
    result = "u32" if a_kind == b_kind == "u32" else "s32"
    types = [a_kind, b_kind, result]
    words = [0, 1, 0x80808080, 0xFF7F01FE, 0x7FFF8001, 0xFFFFFFFF]
    values = {
        "at0": [signed(w, 32) if a_kind == "s32" else w for w in words],
        "at1": [signed(w, 32) if b_kind == "s32" else w for w in words],
    }

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    def four(a, b, c):
        return c + dot(fields(a, 4, 8, a_kind), fields(b, 4, 8, b_kind))

    sweep(f"dp4a.{a_kind}.{b_kind}", result, types, four, **values)
    for part, shift in (("lo", 0), ("hi", 16)):

        def two(a, b, c, shift=shift):
            return c + dot(fields(a, 2, 16, a_kind), fields(b >> shift, 2, 8, b_kind))

        sweep(f"dp2a.{part}.{a_kind}.{b_kind}", result, types, two, **values)


@pytest.mark.parametrize(
    "name",
    ["add.cc.u32", "addc.u32", "mad.lo.cc.u32", "add.sat.u32", "mul.wide.u64", "abs.u32", "min.relu.u32", "add.u8"],
)
def test_what_does_not_exist_or_keeps_a_carry_is_refused(name):
    with pytest.raises(NotModelledError, match="not modelled"):
        evaluate(name, *[[1]] * (3 if "mad" in name else 1 if "abs" in name else 2))
