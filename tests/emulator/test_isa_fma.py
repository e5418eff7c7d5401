"""fma where one rounding is hard to get: beside ties, below the normal numbers, at the overflow (PTX ISA 9.7.3.6)."""

from __future__ import annotations

import random
import timeit
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from gpulinear.emulator import floats
from tests.emulator import reference
from tests.emulator.reference import decode, encode, rounded
from tests.emulator.semantics import bits_of, check_bits, evaluate

RND = ["rn", "rz", "rm", "rp"]


def float_bits(value):
    """The float32 bits of a number that a float32 holds exactly."""
    bits = encode(value, "f32")
    assert value == 0 or decode(bits, "f32") == value
    return bits


def near_ties():
    """a * b + c a hair beside, and exactly on, ties of float32: of normal and subnormal sums, and at the overflow."""
    two = Fraction(2)
    cases = []
    # Products that are a power of two, up to a factor of 1 - 2^-46, 1 + 2^-33, 1 + 2^-30, or exactly.
    factors = [
        (1 + two**-23, 1 - two**-23),
        (1 + two**-11, 1 - two**-11 + two**-22),
        (1 + two**-10, 1 - two**-10 + two**-20),
    ]
    factors += [(Fraction(1), Fraction(1)), (1 + two**-23, 1 - two**-22)]
    bases = [
        (Fraction(1), -24),
        (1 + two**-23, -24),
        (Fraction(2**24 - 1), -1),
        (two**-126, -150),
        (two**-126 - two**-149, -150),
    ]
    bases += [(two**-149, -150), (3 * two**-149, -150), (two**-140 + two**-149, -150), (Fraction(0), -150)]
    bases += [((2 - two**-23) * two**127, 103), ((2 - two**-22) * two**127, 103)]
    for (x, y), (c, power) in product(factors, bases):
        split = max(-120, min(120, power // 2))
        for sign in (1, -1):
            scaled = (sign * x * two**split, y * two ** (power - split), sign * c)
            cases.append(scaled)
            cases.append((-scaled[0], scaled[1], scaled[2]))
    # Products that end in a tie themselves, and an addend that a float64 cannot see beside them.
    tie = (1 + two**-12) * (1 + two**-12)  # 1 + 2^-11 + 2^-24
    assert tie == 1 + two**-11 + two**-24
    for power, sign in product((0, -100, -126), (1, -1)):
        a, b = (1 + two**-12) * two ** (power // 2), (1 + two**-12) * two ** (power - power // 2)
        cases += [(sign * a, b, d * two ** max(power - 60, -149)) for d in (1, -1, 0)]
    # The same below 2^-126: 3 * 2^-150 is half way between 2^-149 and 2^-148.
    cases += [(sign * 3 * two**-75, two**-75, Fraction(0)) for sign in (1, -1)]
    cases += [(sign * (3 + d * two**-20) * two**-75, two**-75, Fraction(0)) for sign in (1, -1) for d in (1, -1)]
    return [tuple(float_bits(v) for v in case) for case in cases]


@pytest.mark.parametrize("rnd", RND)
def test_fma_beside_ties_rounds_the_exact_sum(rnd):
    check_bits(f"fma.{rnd}.f32", "f32", near_ties(), rounded(lambda a, b, c: reference.fma(a, b, c, rnd), "f32", rnd))


def test_the_ties_would_be_missed_by_rounding_twice():
    """The cases above are dangerous: float64 in the middle gets some wrong in every range."""
    cases = near_ties()
    a, b, c = np.array(cases, np.uint32).T.view(np.float32)
    with np.errstate(all="ignore"):
        twice = (a.astype(np.float64) * b + c).astype(np.float32).view(np.uint32).tolist()
    want = rounded(lambda x, y, z: reference.fma(x, y, z), "f32", "rn")
    wrong = [w for case, t in zip(cases, twice, strict=True) if (w := want(*case)) != t]
    sizes = [abs(float(decode(w, "f32"))) for w in wrong]
    assert any(s < 2.0**-126 for s in sizes) and any(1 <= s < 4 for s in sizes) and any(s > 1e38 for s in sizes)


def test_fma_of_f64_beside_ties_and_at_both_ends_of_the_range():
    two = Fraction(2)
    tie = (1 + two**-26, 1 + two**-27)  # the product is 1 + 2^-26 + 2^-27 + 2^-53, half way to the next float64
    top = (1 - two**-53, 1 - two**-53)  # both parts of such a number round up to a power of two
    cases = []
    for (x, y), power in product((tie, top), (-1074, -1060, -1022, -1000, -700, -400, 0, 400, 900, 1020, 1024)):
        a, b = x * two ** (power // 2), y * two ** (power - power // 2)
        for c in (Fraction(0), two**-1074, two**-600, two ** max(power - 53, -1074), two ** max(power - 54, -1074)):
            cases += [(a, b, c), (a, b, -c), (-a, b, c), (a, b, two ** max(min(power, 1023) - 1, -1074)), (a, b, -a)]
    bits = [tuple(encode(v if v else 0.0, "f64") for v in case) for case in cases]
    check_bits("fma.rn.f64", "f64", bits, rounded(reference.fma, "f64", "rn"))
    rng = random.Random(12)
    full = [tuple(rng.getrandbits(64) for _ in range(3)) for _ in range(500)]
    check_bits("fma.rn.f64", "f64", full, rounded(reference.fma, "f64", "rn"))
    # Few bits: most sums are exact, or ties.
    few = [
        (rng.randrange(1, 2**27), rng.randrange(1, 2**27), rng.randrange(1, 2**20) * two ** rng.randrange(30, 45))
        for _ in range(500)
    ]
    few = [tuple(encode(Fraction(v), "f64") for v in case) for case in few]
    check_bits("fma.rn.f64", "f64", few, rounded(reference.fma, "f64", "rn"))


def test_fma_of_random_and_of_integer_data():
    rng = np.random.default_rng(11)
    random_data = [rng.standard_normal(1500).astype(np.float32) for _ in range(3)]
    small = [rng.integers(-9, 10, 1500).astype(np.float32) for _ in range(3)]
    large = [rng.integers(-(2**13), 2**13, 1500).astype(np.float32) for _ in range(2)] + [
        random_data[2] * np.float32(2**25)
    ]
    for data in (random_data, small, large):
        cases = list(zip(*(x.view(np.uint32).tolist() for x in data), strict=True))
        check_bits("fma.rn.f32", "f32", cases, rounded(reference.fma, "f32", "rn"))


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_literals_among_the_operands(kind):
    dtype = np.float32 if kind == "f32" else np.float64
    x, two, third = np.array([1.5, -3.0, 1e30], dtype), dtype(2), dtype(1 / 3)
    want = [encode(reference.fma(Fraction(float(v)), Fraction(2), Fraction(float(third))), kind) for v in x]
    for operands in ((x, two, third), (two, x, third), (x, np.full(3, two), third), (two, x, np.full(3, third))):
        assert bits_of(evaluate(f"fma.rn.{kind}", *operands)).tolist() == want


def test_fma_of_a_matrix_is_fast_for_any_data():
    """A few dozen microseconds, be the sums rounded, exact or zero; the limit leaves room for a busy machine."""
    rng = np.random.default_rng(5)
    for data in (rng.standard_normal((3, 64, 256)), rng.integers(-8, 9, (3, 64, 256)), np.zeros((3, 64, 256))):
        a, b, c = data.astype(np.float32)
        with np.errstate(all="ignore"):
            assert min(timeit.repeat(lambda: floats.fma(a, b, c), number=1, repeat=30)) < 400e-6  # noqa: B023
