"""Floating point on f32, f64 and f32x2 against fractions (PTX ISA 9.7.3, 9.7.5)."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from gpulinear.emulator.errors import NotModelledError
from tests.emulator import reference
from tests.emulator.reference import NAN, decode, encode, flush, patterns, rounded, sample
from tests.emulator.semantics import bits_of, check_bits, evaluate

RND = ["rn", "rz", "rm", "rp"]
UINT = {"f32": np.uint32, "f64": np.uint64}


@pytest.mark.parametrize("rnd", RND)
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_sums_products_and_fma_round_once(kind, rnd):
    count = 1200 if kind == "f32" else 400
    pairs, triples = sample(kind, 2, count, 1), sample(kind, 3, count, 2)
    check_bits(f"add.{rnd}.{kind}", kind, pairs, rounded(lambda a, b: reference.add(a, b, rnd), kind, rnd))
    check_bits(f"sub.{rnd}.{kind}", kind, pairs, rounded(lambda a, b: reference.add(a, -b, rnd), kind, rnd))
    check_bits(f"mul.{rnd}.{kind}", kind, pairs, rounded(reference.multiply, kind, rnd))
    fma = rounded(lambda a, b, c: reference.fma(a, b, c, rnd), kind, rnd)
    check_bits(f"fma.{rnd}.{kind}", kind, triples, fma)
    check_bits(f"mad.{rnd}.{kind}", kind, triples[:500], fma)


def test_no_rounding_modifier_means_to_nearest():
    for name, function in (("add", reference.add), ("mul", reference.multiply)):
        for kind in ("f32", "f64"):
            check_bits(f"{name}.{kind}", kind, sample(kind, 2, 500, 3), rounded(function, kind, "rn"))


@pytest.mark.parametrize("rnd", ["rn", "rp"])
@pytest.mark.parametrize("modifiers", [".ftz", ".sat", ".ftz.sat"])
def test_ftz_and_sat(modifiers, rnd):
    ftz, sat = "ftz" in modifiers, "sat" in modifiers
    pairs, triples = sample("f32", 2, 800, 4), sample("f32", 3, 1000, 5)

    def want(function):
        return rounded(function, "f32", rnd, ftz, sat)

    check_bits(f"add.{rnd}{modifiers}.f32", "f32", pairs, want(lambda a, b: reference.add(a, b, rnd)))
    check_bits(f"mul.{rnd}{modifiers}.f32", "f32", pairs, want(reference.multiply))
    check_bits(f"fma.{rnd}{modifiers}.f32", "f32", triples, want(lambda a, b, c: reference.fma(a, b, c, rnd)))


@pytest.mark.parametrize("rnd", RND)
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_division_reciprocal_and_root(kind, rnd):
    cases = [(a, b) for a, b in sample(kind, 2, 600, 6)]

    def divide(a, b):
        if reference.is_nan(a) or reference.is_nan(b):
            return math.nan
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a / b
        sign = -1.0 if reference.negative(a) != reference.negative(b) else 1.0
        inf_a, inf_b = (isinstance(v, float) and math.isinf(v) for v in (a, b))
        if (a == 0 and b == 0) or (inf_a and inf_b):
            return math.nan
        return sign * (math.inf if inf_a or b == 0 else 0.0)

    check_bits(f"div.{rnd}.{kind}", kind, cases, rounded(divide, kind, rnd))
    single = [(p,) for p in patterns(kind)]
    check_bits(f"rcp.{rnd}.{kind}", kind, single, rounded(lambda a: divide(Fraction(1), a), kind, rnd))
    if kind == "f32":
        check_bits(f"div.{rnd}.ftz.f32", kind, cases, rounded(divide, kind, rnd, ftz=True))

    def check_root(bits, got):
        value = decode(bits, kind)
        if isinstance(value, float) or value < 0:
            want = bits if value == 0 or value == math.inf else NAN[kind]
            assert got == want
            return
        below, here, above = (decode(g, kind) ** 2 for g in (got - 1, got, got + 1))
        middle_low, middle_high = ((decode(got, kind) + decode(got + d, kind)) / 2 for d in (-1, 1))
        if rnd == "rn":
            assert middle_low**2 <= value <= middle_high**2
        elif rnd == "rp":
            assert below < value <= here
        else:
            assert here <= value < above

    got = bits_of(evaluate(f"sqrt.{rnd}.{kind}", np.array(patterns(kind), UINT[kind]))).tolist()
    for bits, value in zip(patterns(kind), got, strict=True):
        check_root(bits, value)


def test_pairs_of_floats_in_64_bits():
    values = patterns("f32")
    words = [a | b << 32 for a, b in zip(values, values[3:] + values[:3], strict=True)]
    cases = list(zip(words, words[5:] + words[:5], words[11:] + words[:11], strict=True))

    def both(function, *, rnd="rn", ftz=False):
        single = rounded(function, "f32", rnd, ftz)
        return lambda *w: single(*[v & 0xFFFFFFFF for v in w]) | single(*[v >> 32 for v in w]) << 32

    check_bits("fma.rn.f32x2", "f32x2", cases, both(reference.fma))
    check_bits(
        "fma.rp.ftz.f32x2", "f32x2", cases, both(lambda a, b, c: reference.fma(a, b, c, "rp"), rnd="rp", ftz=True)
    )
    pairs = [case[:2] for case in cases]
    check_bits("add.rn.f32x2", "f32x2", pairs, both(reference.add))
    check_bits("sub.f32x2", "f32x2", pairs, both(lambda a, b: reference.add(a, -b)))
    check_bits("mul.rz.ftz.f32x2", "f32x2", pairs, both(reference.multiply, rnd="rz", ftz=True))


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_mixed_precision_adds_the_exact_half(half):
    halves, wide = patterns(half)[::2], patterns("f32")[::2]

    def want(function, rnd="rn", sat=False):
        def on_bits(*bits):
            result = encode(function(*[decode(b, half) for b in bits[:-1]], decode(bits[-1], "f32")), "f32", rnd)
            return rounded(lambda r: r, "f32", sat=sat)(result)

        return on_bits

    pairs = list(product(halves, wide))
    check_bits(f"add.f32.{half}", [half, "f32"], pairs, want(reference.add))
    check_bits(f"add.rz.sat.f32.{half}", [half, "f32"], pairs, want(reference.add, "rz", True))
    check_bits(f"sub.rn.f32.{half}", [half, "f32"], pairs, want(lambda a, c: reference.add(a, -c)))
    triples = list(product(halves, halves[::3], wide))
    up = want(lambda a, b, c: reference.fma(a, b, c, "rp"), "rp")
    check_bits(f"fma.rp.f32.{half}", [half, half, "f32"], triples, up)


def test_neg_abs_copysign():
    quiet, loud = 0x7FC00001, 0xFF800001
    values = [0, 1 << 31, 0x3F800000, 0xBF800000, 1, 0x80000001, 0x7F800000, quiet, loud]
    nan = NAN["f32"]
    x = np.array(values, np.uint32)
    negated = [v ^ (1 << 31) for v in values[:-2]] + [nan, nan]
    assert bits_of(evaluate("neg.f32", x)).tolist() == negated
    assert bits_of(evaluate("abs.f32", x)).tolist() == [v & 0x7FFFFFFF for v in values[:-2]] + [nan, nan]
    assert bits_of(evaluate("neg.ftz.f32", x)).tolist()[4:6] == [1 << 31, 0]
    assert bits_of(evaluate("abs.ftz.f32", x)).tolist()[4:6] == [0, 0]
    wide = np.array([1 << 63, 0xFFF8000000000123, 0xC000000000000000], np.uint64)
    assert bits_of(evaluate("abs.f64", wide)).tolist() == [0, 0xFFF8000000000123, 0x4000000000000000]
    assert bits_of(evaluate("neg.f64", wide)).tolist() == [0, NAN["f64"], 0x4000000000000000]
    signs = np.array([1 << 31] * 9, np.uint32)
    assert bits_of(evaluate("copysign.f32", signs, x)).tolist() == [v | 1 << 31 for v in values]
    assert evaluate("copysign.f64", [-1.0, 1.0], [3.0, -0.0]).tolist() == [-3.0, 0.0]


def extreme(kind, largest, *, nan=False, ftz=False, xorsign=False, magnitude=False):
    """The ISA's min and max of two numbers, on bit patterns."""
    sign = 1 << (reference.FORMATS[kind].width - 1)

    def on_bits(a, b):
        if ftz:
            a, b = flush(a, kind), flush(b, kind)
        xor = (a ^ b) & sign
        if xorsign or magnitude:
            a, b = a & ~sign, b & ~sign
        a_nan, b_nan = reference.is_nan(decode(a, kind)), reference.is_nan(decode(b, kind))
        if (a_nan and b_nan) or (nan and (a_nan or b_nan)):
            return NAN[kind]
        if a_nan or b_nan:
            d = b if a_nan else a
        else:
            key = lambda bits: (decode(bits, kind), not bits & sign)  # noqa: E731  -0 is below +0
            d = (max if largest else min)(a, b, key=key)
        return (d & ~sign | xor) if xorsign else d

    return on_bits


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize(
    "modifiers", ["", ".ftz", ".NaN", ".xorsign.abs", ".ftz.NaN", ".NaN.xorsign.abs", ".ftz.NaN.xorsign.abs"]
)
def test_min_max(modifiers, largest):
    options = {"nan": "NaN" in modifiers, "ftz": "ftz" in modifiers, "xorsign": "xorsign" in modifiers}
    name = "max" if largest else "min"
    pairs = sample("f32", 2, 700, 8)
    check_bits(f"{name}{modifiers}.f32", "f32", pairs, extreme("f32", largest, **options))
    if not modifiers:
        check_bits(f"{name}.f64", "f64", sample("f64", 2, 700, 9), extreme("f64", largest))


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("modifiers", ["", ".abs", ".NaN", ".NaN.abs", ".ftz"])
def test_min_max_of_three(modifiers, largest):
    options = {"nan": "NaN" in modifiers, "ftz": "ftz" in modifiers, "magnitude": "abs" in modifiers}
    two = extreme("f32", largest, **options)
    values = patterns("f32")[::5]
    name = "max" if largest else "min"
    check_bits(f"{name}{modifiers}.f32", "f32", list(product(values, repeat=3)), lambda a, b, c: two(two(a, b), c))


def test_testp():
    classes = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"]
    for kind in ("f32", "f64"):
        fmt = reference.FORMATS[kind]
        for bits in patterns(kind):
            value = decode(bits, kind)
            infinite, nan = value in (math.inf, -math.inf), reference.is_nan(value)
            small = not nan and 0 < abs(value) < Fraction(2) ** (2 - (1 << (fmt.exponent - 1)))
            finite = not infinite and not nan
            want = [finite, infinite, not nan, nan, finite and not small, small]
            got = [bool(evaluate(f"testp.{c}.{kind}", np.array([bits], UINT[kind]))[0]) for c in classes]
            assert got == want, hex(bits)


INF, NEG = math.inf, -1.5

# Input and result of the ISA's tables for the approximate functions.
TABLES = {
    "rcp": [(-INF, -0.0), (-0.0, -INF), (0.0, INF), (INF, 0.0)],
    "sqrt": [(-INF, math.nan), (NEG, math.nan), (-0.0, -0.0), (0.0, 0.0), (INF, INF), (4.0, 2.0)],
    "rsqrt": [(-INF, math.nan), (NEG, math.nan), (-0.0, -INF), (0.0, INF), (INF, 0.0), (4.0, 0.5)],
    "sin": [(-INF, math.nan), (-0.0, -0.0), (0.0, 0.0), (INF, math.nan)],
    "cos": [(-INF, math.nan), (-0.0, 1.0), (0.0, 1.0), (INF, math.nan)],
    "lg2": [(-INF, math.nan), (NEG, math.nan), (-0.0, -INF), (0.0, -INF), (INF, INF), (8.0, 3.0)],
    "ex2": [(-INF, 0.0), (-0.0, 1.0), (0.0, 1.0), (INF, INF), (-149.0, 2.0**-149), (-3.0, 0.125), (128.0, INF)],
    "tanh": [(-INF, -1.0), (-0.0, -0.0), (0.0, 0.0), (INF, 1.0), (2.0**-140, 2.0**-140)],
}


@pytest.mark.parametrize("name", TABLES)
def test_approximate_functions_follow_the_tables(name):
    inputs, results = zip(*TABLES[name], (math.nan, math.nan), strict=True)
    got = bits_of(evaluate(f"{name}.approx.f32", list(inputs))).tolist()
    want = [NAN["f32"] if math.isnan(r) else int(np.float32(r).view(np.uint32)) for r in results]
    assert got == want


def test_approximate_functions_between():
    x = np.linspace(0.25, 3.0, 50).astype(np.float32)
    names = {"rcp": lambda v: 1 / v, "sqrt": math.sqrt, "rsqrt": lambda v: v**-0.5, "sin": math.sin, "cos": math.cos}
    names |= {"lg2": math.log2, "ex2": lambda v: 2**v, "tanh": math.tanh}
    for name, function in names.items():
        got = evaluate(f"{name}.approx.f32", x)
        want = np.array([function(float(v)) for v in x])
        half_ulp = np.spacing(np.abs(want).astype(np.float32)).astype(np.float64) / 2
        assert (np.abs(got.astype(np.float64) - want) <= half_ulp * (1 + 2.0**-20)).all(), name


def test_ftz_of_approximate_functions():
    tiny = np.array([1, 0x80000001], np.uint32)
    assert bits_of(evaluate("rcp.approx.ftz.f32", tiny)).tolist() == [0x7F800000, 0xFF800000]
    assert evaluate("rsqrt.approx.ftz.f32", tiny).tolist() == [INF, -INF]
    assert bits_of(evaluate("ex2.approx.ftz.f32", [-140.0])).tolist() == [0]
    assert bits_of(evaluate("sin.approx.ftz.f32", tiny)).tolist() == [0, 1 << 31]


def test_approximate_division():
    huge = 2.0**127
    assert evaluate("div.approx.f32", [huge, -huge, INF, 6.0], [huge, huge, huge, -2.0]).tolist()[:2] == [0.0, -0.0]
    got = bits_of(evaluate("div.approx.f32", [-huge, INF, 6.0], [huge, huge, -2.0])).tolist()
    assert got == [1 << 31, NAN["f32"], 0xC0400000]
    assert evaluate("div.full.f32", [huge, 6.0], [huge, -2.0]).tolist() == [1.0, -3.0]
    assert evaluate("div.full.ftz.f32", [2.0**-130], [1.0]).tolist() == [0.0]
    # 2^126 itself is still divided by.
    assert evaluate("div.approx.f32", [2.0**126], [2.0**126]).tolist() == [1.0]


def test_gross_approximations_of_f64():
    nan = 0x7FFFFFFF00000000
    subnormal = np.array([1, 1 << 63 | 0xFFFFF00000000], np.uint64).view(np.float64)
    x = np.concatenate([[-INF, -0.0, 0.0, INF, math.nan, 3.0], subnormal])
    got = bits_of(evaluate("rcp.approx.ftz.f64", x)).tolist()
    bits = [int(np.float64(v).view(np.uint64)) for v in (-0.0, -INF, INF, 0.0)]
    assert got[:5] == [*bits, nan] and got[6:] == [bits[2], bits[1]]
    assert got[5] & 0xFFFFFFFF == 0 and math.isclose(np.uint64(got[5]).view(np.float64), 1 / 3, rel_tol=1e-6)
    got = bits_of(evaluate("rsqrt.approx.ftz.f64", x)).tolist()
    assert got[:5] == [nan, bits[1], bits[2], 0, nan] and got[6:] == [bits[2], bits[1]]
    assert got[5] & 0xFFFFFFFF == 0 and math.isclose(np.uint64(got[5]).view(np.float64), 3**-0.5, rel_tol=1e-6)
    # The lower word of the operand is not looked at.
    low = np.array([0x40080000FFFFFFFF, 0x4008000000000000], np.uint64)
    first, second = evaluate("rcp.approx.ftz.f64", low)
    assert first == second
    assert evaluate("rsqrt.approx.f64", [4.0, 0.0]).tolist() == [0.5, INF]


@pytest.mark.parametrize(
    "name", ["add.sat.f64", "fma.f32", "div.f32", "add.rna.f32", "min.xorsign.f32", "tanh.approx.ftz.f32"]
)
def test_forms_that_do_not_exist_are_refused(name):
    with pytest.raises(NotModelledError):
        evaluate(name, *[[1.0]] * (3 if "fma" in name else 1 if "tanh" in name else 2))
