"""Comparison and selection (PTX ISA 9.7.6, 9.7.7, 9.3.1)."""

from __future__ import annotations

import operator
from itertools import product

import numpy as np
import pytest

from gpulinear.emulator.errors import NotModelledError
from tests.emulator import reference
from tests.emulator.reference import decode, flush, patterns
from tests.emulator.semantics import bits_of, edges, evaluate

# True for the order -1, 0, 1 of the operands; unordered comparisons have a u.
ORDER = {"eq": (0, 1, 0), "ne": (1, 0, 1), "lt": (1, 0, 0), "le": (1, 1, 0), "gt": (0, 0, 1), "ge": (0, 1, 1)}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
UINT = {"f16": np.uint16, "bf16": np.uint16, "f32": np.uint32, "f64": np.uint64}
BOOL = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
FLOAT_OPERATORS = [*ORDER, *(name + "u" for name in ORDER), "num", "nan"]


def holds(name, a, b):
    """What a floating point comparison says of two numbers."""
    order = reference.compare(a, b)
    if name in ("num", "nan"):
        return (order is None) == (name == "nan")
    if order is None:
        return name not in ORDER
    return bool(ORDER[name if name in ORDER else name[:-1]][order + 1])


def columns(kind):
    pairs = list(product(patterns(kind), repeat=2))
    return pairs, [np.array(column, UINT[kind]) for column in zip(*pairs, strict=True)]


@pytest.mark.parametrize("kind", ["s16", "s32", "s64", "u16", "u32", "u64", "b16", "b32", "b64"])
def test_integer_comparisons(kind):
    pairs = list(product(edges(kind), repeat=2))
    a, b = ([pair[i] for pair in pairs] for i in (0, 1))
    for name in [*ORDER, *UNSIGNED]:
        exists = name in ("eq", "ne") if kind[0] == "b" else kind[0] == "u" or name in ORDER
        if not exists:
            with pytest.raises(NotModelledError):
                evaluate(f"setp.{name}.{kind}", a, b)
            continue
        order = ORDER[UNSIGNED.get(name, name)]
        want = [bool(order[reference.compare(x, y) + 1]) for x, y in pairs]
        assert evaluate(f"setp.{name}.{kind}", a, b).tolist() == want
        p, q = evaluate(f"setp.{name}.{kind}", a, b, outputs=2)
        assert p.tolist() == want and q.tolist() == [not w for w in want]
        assert evaluate(f"set.{name}.u32.{kind}", a, b).tolist() == [0xFFFFFFFF * w for w in want]
        assert evaluate(f"set.{name}.s32.{kind}", a, b).tolist() == [-1 * w for w in want]
        assert evaluate(f"set.{name}.f32.{kind}", a, b).tolist() == [float(w) for w in want]
        assert evaluate(f"set.{name}.f16.{kind}", a, b).tolist() == [0x3C00 * w for w in want]
        assert evaluate(f"set.{name}.bf16.{kind}", a, b).tolist() == [0x3F80 * w for w in want]


@pytest.mark.parametrize("name", FLOAT_OPERATORS)
@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16"])
def test_float_comparisons(kind, name):
    pairs, (a, b) = columns(kind)
    want = [holds(name, decode(x, kind), decode(y, kind)) for x, y in pairs]
    assert evaluate(f"setp.{name}.{kind}", a, b).tolist() == want
    assert evaluate(f"set.{name}.u32.{kind}", a, b).tolist() == [0xFFFFFFFF * w for w in want]
    if kind in ("f32", "f64"):
        p, q = evaluate(f"setp.{name}.{kind}", a, b, outputs=2)
        assert p.tolist() == want and q.tolist() == [not w for w in want]
        assert evaluate(f"set.{name}.f32.{kind}", a, b).tolist() == [float(w) for w in want]
    else:
        assert evaluate(f"set.{name}.s16.{kind}", a, b).tolist() == [-1 * w for w in want]
        assert evaluate(f"set.{name}.bf16.{kind}", a, b).tolist() == [0x3F80 * w for w in want]
    if kind in ("f32", "f16"):
        want = [holds(name, decode(flush(x, kind), kind), decode(flush(y, kind), kind)) for x, y in pairs]
        assert evaluate(f"setp.{name}.ftz.{kind}", a, b).tolist() == want
    else:
        with pytest.raises(NotModelledError):
            evaluate(f"setp.{name}.ftz.{kind}", a, b)


@pytest.mark.parametrize("combine", BOOL)
def test_combination_with_a_predicate(combine):
    cases = list(product([1, 2], [1, 2], [False, True]))
    a, b, c = ([case[i] for case in cases] for i in range(3))
    want = [BOOL[combine](x < y, z) for x, y, z in cases]
    complement = [BOOL[combine](not x < y, z) for x, y, z in cases]
    assert evaluate(f"setp.lt.{combine}.s32", a, b, c).tolist() == want
    p, q = evaluate(f"setp.lt.{combine}.f32", a, b, c, outputs=2)
    assert p.tolist() == want and q.tolist() == complement
    assert evaluate(f"setp.lt.{combine}.ftz.f32", a, b, c).tolist() == want
    assert evaluate(f"set.lt.{combine}.f32.s32", a, b, c).tolist() == [float(w) for w in want]
    halves = [[0x3C00 if v == 1 else 0x4000 for v in x] for x in (a, b)]
    assert evaluate(f"setp.lt.{combine}.f16", *halves, c).tolist() == want
    assert evaluate(f"set.lt.{combine}.f16.f16", *halves, c).tolist() == [0x3C00 * w for w in want]
    # Packed: the low halves as above, the high halves always less.
    words = [[w | high << 16 for w in x] for x, high in zip(halves, (0x3C00, 0x4000), strict=True)]
    high = [BOOL[combine](True, z) for z in c]
    p, q = evaluate(f"setp.lt.{combine}.f16x2", *words, c, outputs=2)
    assert p.tolist() == want and q.tolist() == high
    packed = evaluate(f"set.lt.{combine}.u32.f16x2", *words, c).tolist()
    assert packed == [0xFFFF * w | 0xFFFF0000 * h for w, h in zip(want, high, strict=True)]


@pytest.mark.parametrize("name", ["lt", "neu", "nan"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_packed_halves(kind, name):
    pairs, (a, b) = columns(kind)
    low = [holds(name, decode(x, kind), decode(y, kind)) for x, y in pairs]
    high = low[7:] + low[:7]
    words = [x.astype(np.uint32) | np.roll(x, -7).astype(np.uint32) << 16 for x in (a, b)]
    p, q = evaluate(f"setp.{name}.{kind}x2", *words, outputs=2)
    assert p.tolist() == low and q.tolist() == high
    one = 0x3C00 if kind == "f16" else 0x3F80
    both = list(zip(low, high, strict=True))
    assert evaluate(f"set.{name}.{kind}x2.{kind}x2", *words).tolist() == [one * x | one * y << 16 for x, y in both]
    assert evaluate(f"set.{name}.u32.{kind}x2", *words).tolist() == [0xFFFF * x | 0xFFFF0000 * y for x, y in both]
    signed = np.array([0xFFFF * x | 0xFFFF0000 * y for x, y in both], np.uint32).view(np.int32).tolist()
    assert evaluate(f"set.{name}.s32.{kind}x2", *words).tolist() == signed
    with pytest.raises(NotModelledError):
        evaluate(f"setp.{name}.{kind}x2", *words)


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64"])
def test_selp_and_slct(kind):
    assert evaluate(f"selp.{kind}", [1, 2], [3, 4], [1, 0]).tolist() == [1, 4]
    assert evaluate(f"selp.{kind}", 5, 6, [0, 1]).tolist() == [6, 5]
    assert evaluate(f"slct.{kind}.s32", [1] * 4, [2] * 4, [0, 1, -1, -(2**31)]).tolist() == [1, 1, 2, 2]
    c = np.array([0x80000000, 1, 0x80000001, 0x7FC00000, 0x3F800000, 0xBF800000], np.uint32)
    assert evaluate(f"slct.{kind}.f32", [1] * 6, [2] * 6, c).tolist() == [1, 1, 2, 2, 1, 2]
    assert evaluate(f"slct.ftz.{kind}.f32", [1] * 6, [2] * 6, c).tolist() == [1, 1, 1, 2, 1, 2]


def test_selection_does_not_touch_nan_bits():
    nan = np.array([0x7F800001, 0xFFC12345], np.uint32)
    assert bits_of(evaluate("selp.f32", nan, [1.0, 1.0], [1, 1])).tolist() == nan.tolist()
    assert bits_of(evaluate("slct.f32.s32", [1.0, 1.0], nan, [-1, -1])).tolist() == nan.tolist()
    wide = np.array([0xFFF0000000000001], np.uint64)
    assert bits_of(evaluate("selp.f64", wide, [1.0], [1])).tolist() == wide.tolist()


@pytest.mark.parametrize(
    "name", ["setp.lt.b32", "setp.ltu.s32", "setp.lo.f32", "setp.lt.ftz.f64", "set.lt.u16.s32", "setp.eq.pred"]
)
def test_forms_that_do_not_exist_are_refused(name):
    with pytest.raises(NotModelledError):
        evaluate(name, [1], [1])
