"""Half precision arithmetic against fractions (PTX ISA 9.7.4): every result is one rounding of the exact one."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest

from gpulinear.emulator.errors import NotModelledError
from tests.emulator import reference
from tests.emulator.reference import NAN, decode, encode, flush, mixture, patterns, rounded
from tests.emulator.semantics import evaluate

HALVES = ["f16", "bf16"]


def check(name, kind, cases, want):
    got = evaluate(f"{name}.{kind}", *[list(column) for column in zip(*cases, strict=True)]).tolist()
    for case, value in zip(cases, got, strict=True):
        assert value == want(*case), (name, kind, [hex(c) for c in case], hex(value), hex(want(*case)))
    # The packed form does the same to both halves.
    other = cases[1:] + cases[:1]
    words = [[a | b << 16 for a, b in zip(low, high, strict=True)] for low, high in zip(cases, other, strict=True)]
    packed = evaluate(f"{name}.{kind}x2", *[list(column) for column in zip(*words, strict=True)]).tolist()
    assert packed == [a | b << 16 for a, b in zip(got, got[1:] + got[:1], strict=True)]


@pytest.mark.parametrize("kind", HALVES)
def test_arithmetic_rounds_once(kind):
    pairs, triples = mixture(kind, 2, 3000, 1), mixture(kind, 3, 4000, 2)
    for rnd in ("", ".rn"):
        check(f"add{rnd}", kind, pairs, rounded(reference.add, kind))
        check(f"sub{rnd}", kind, pairs, rounded(lambda a, b: reference.add(a, -b), kind))
        check(f"mul{rnd}", kind, pairs, rounded(reference.multiply, kind))
    check("fma.rn", kind, triples, rounded(reference.fma, kind))
    check("fma.rn.relu", kind, triples, rounded(reference.fma, kind, relu=True))


@pytest.mark.parametrize("modifiers", [".ftz", ".sat", ".ftz.sat"])
def test_ftz_and_sat_of_f16(modifiers):
    options = {"ftz": "ftz" in modifiers, "sat": "sat" in modifiers}
    pairs, triples = mixture("f16", 2, 2000, 3), mixture("f16", 3, 2000, 4)
    check(f"add{modifiers}", "f16", pairs, rounded(reference.add, "f16", **options))
    check(f"sub{modifiers}", "f16", pairs, rounded(lambda a, b: reference.add(a, -b), "f16", **options))
    check(f"mul{modifiers}", "f16", pairs, rounded(reference.multiply, "f16", **options))
    check(f"fma.rn{modifiers}", "f16", triples, rounded(reference.fma, "f16", **options))


def test_relu_with_ftz():
    triples = mixture("f16", 3, 1000, 5)
    check("fma.rn.ftz.relu", "f16", triples, rounded(reference.fma, "f16", ftz=True, relu=True))


@pytest.mark.parametrize("kind", HALVES)
def test_fma_beside_ties(kind):
    """The product is a tie of the type, the smallest addend moves it off: for bf16 by less than a float64 can tell."""
    digits = reference.FORMATS[kind].fraction
    x, y = 1 + Fraction(2) ** -(digits // 2), 1 + Fraction(2) ** -(digits + 1 - digits // 2)
    assert (x * y * 2 ** (digits + 1)).numerator % 2 == 1 and (x * y * 2 ** (digits + 1)).denominator == 1
    cases = []
    for power in (0, 10) if kind == "f16" else (0, 60, -60):
        a, b = encode(x * Fraction(2) ** power, kind), encode(y, kind)
        cases += [(a, b ^ sign, c) for sign in (0, 0x8000) for c in (1, 0x8001, 0, 0x8000)]
    check("fma.rn", kind, cases, rounded(reference.fma, kind))


@pytest.mark.parametrize("kind", HALVES)
def test_sums_and_products_of_all_pairs_of_exponents(kind):
    """float32 in the middle must not round twice: long significands, every distance of exponents, tiny products."""
    rng = random.Random(6)
    fmt = reference.FORMATS[kind]
    pairs = []
    for exponent in range(0, (1 << fmt.exponent) - 1, 1 if kind == "f16" else 5):
        for distance in range(fmt.fraction + 4):
            low = max(0, exponent - distance)
            fractions = [rng.choice([0, 1, (1 << fmt.fraction) - 1, rng.getrandbits(fmt.fraction)]) for _ in range(2)]
            pairs.append(
                (exponent << fmt.fraction | fractions[0], low << fmt.fraction | fractions[1] | rng.choice([0, 0x8000]))
            )
    check("add", kind, pairs, rounded(reference.add, kind))
    bias = (1 << (fmt.exponent - 1)) - 1
    tiny = []
    for _ in range(1500):
        a = rng.randrange(1, bias)
        b = max(0, min(2 * bias, bias + 1 - a + rng.randrange(-fmt.fraction - 3, 2)))
        tiny.append(
            (a << fmt.fraction | rng.getrandbits(fmt.fraction), b << fmt.fraction | rng.getrandbits(fmt.fraction))
        )
    check("mul", kind, tiny, rounded(reference.multiply, kind))


@pytest.mark.parametrize("kind", HALVES)
def test_neg_and_abs(kind):
    cases = [(p,) for p in patterns(kind)]
    check("neg", kind, cases, rounded(lambda a: -a, kind))
    check("abs", kind, cases, rounded(abs, kind))
    if kind == "f16":
        check("neg.ftz", kind, cases, rounded(lambda a: -a, kind, ftz=True))
        check("abs.ftz", kind, cases, rounded(abs, kind, ftz=True))


@pytest.mark.parametrize("modifiers", ["", ".NaN", ".xorsign.abs", ".NaN.xorsign.abs", ".ftz", ".ftz.NaN.xorsign.abs"])
@pytest.mark.parametrize("kind", HALVES)
def test_min_max(kind, modifiers):
    nan, xorsign, ftz = "NaN" in modifiers, "xorsign" in modifiers, "ftz" in modifiers
    if ftz and kind == "bf16":
        with pytest.raises(NotModelledError):
            evaluate(f"min{modifiers}.bf16", [1], [1])
        return

    def extreme(choose):
        def run(a, b):
            a, b = (flush(a, kind), flush(b, kind)) if ftz else (a, b)
            sign = (a ^ b) & 0x8000
            if xorsign:
                a, b = a & 0x7FFF, b & 0x7FFF
            nans = [reference.is_nan(decode(v, kind)) for v in (a, b)]
            if all(nans) or (nan and any(nans)):
                return NAN[kind]
            d = (b if nans[0] else a) if any(nans) else choose(a, b, key=lambda v: (decode(v, kind), not v & 0x8000))
            return d & 0x7FFF | sign if xorsign else d

        return run

    pairs = mixture(kind, 2, 1500, 7)
    check(f"min{modifiers}", kind, pairs, extreme(min))
    check(f"max{modifiers}", kind, pairs, extreme(max))


@pytest.mark.parametrize("kind", HALVES)
def test_tanh_and_ex2_follow_the_tables(kind):
    one, infinity = encode(Fraction(1), kind), encode(math.inf, kind)
    minus = 0x8000
    x = [infinity | minus, minus, 0, infinity, NAN[kind]]
    assert evaluate(f"tanh.approx.{kind}", x).tolist() == [one | minus, minus, 0, one, NAN[kind]]
    name = f"ex2.approx.{'ftz.' if kind == 'bf16' else ''}{kind}"
    assert evaluate(name, x).tolist() == [0, one, one, infinity, NAN[kind]]
    three = encode(Fraction(-3), kind)
    assert evaluate(name, [three, 1, 0x8001]).tolist() == [encode(Fraction(1, 8), kind), one, one]
    assert evaluate(name + "x2", [three | one << 16]).tolist() == [
        encode(Fraction(1, 8), kind) | encode(Fraction(2), kind) << 16
    ]
    # Subnormals: tanh keeps them; 2^-24 and 2^-133 are the smallest of f16 and bf16, ftz flushes such results.
    assert evaluate(f"tanh.approx.{kind}", [1, 0x8001]).tolist() == [1, 0x8001]
    assert evaluate(name, [encode(Fraction(-24 if kind == "f16" else -130), kind)]).tolist() == [
        1 if kind == "f16" else 0
    ]
    half = encode(Fraction(1, 2), kind)
    assert evaluate(f"tanh.approx.{kind}", [half]).tolist() == [encode(Fraction(math.tanh(0.5)), kind)]


@pytest.mark.parametrize(
    "name", ["add.sat.bf16", "fma.rn.oob.f16", "fma.rn.sat.relu.f16", "add.rz.f16", "ex2.approx.bf16", "fma.f16"]
)
def test_forms_that_do_not_exist_are_refused(name):
    with pytest.raises(NotModelledError):
        evaluate(name, *[np.zeros(1, np.uint16)] * (3 if "fma" in name else 1 if "ex2" in name else 2))
