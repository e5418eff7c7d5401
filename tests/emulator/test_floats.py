"""floats.py against fractions: every result must be the neighbour that the mode asks for."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from gpulinear.emulator import floats
from gpulinear.emulator.floats import ROUNDINGS
from gpulinear.emulator.rounding import BF16, F16, F32, TF32, Format, round_to

UINT = {np.float16: np.uint16, np.float32: np.uint32, np.float64: np.uint64}


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


def operands(dtype, count, seed):
    """Random bit patterns, plus corners, plus numbers close enough to cancel and to tie."""
    rng = np.random.default_rng(seed)
    unsigned = UINT[dtype]
    info = np.finfo(dtype)
    raw = rng.integers(0, np.iinfo(unsigned).max, count, dtype=unsigned).view(dtype)
    near = (rng.integers(-64, 64, count) * np.exp2(rng.integers(-3, 4, count))).astype(dtype)
    corners = [
        0.0,
        1.0,
        1 + info.eps,
        1 - info.epsneg,
        info.max,
        info.tiny,
        info.smallest_subnormal,
    ]
    corners += [float(info.tiny) * 1.5, np.inf, np.nan]
    corners = np.array(corners + [-v for v in corners], dtype)
    return np.concatenate([raw, near, rng.choice(corners, count), rng.standard_normal(count)]).astype(dtype)


def nearest(value: Fraction, precision: int, emin: int, emax: int, rnd: str) -> float | str:
    """Round a non-zero fraction with integers only; overflow gives 'inf' or 'max'."""
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    quantum = Fraction(2) ** (max(exponent, emin) - precision + 1)
    whole, rest = divmod(size, quantum)
    up = {
        "rn": rest * 2 > quantum or (rest * 2 == quantum and whole % 2 == 1),
        "rna": rest * 2 >= quantum,
        "rz": False,
        "rm": value < 0 and rest > 0,
        "rp": value > 0 and rest > 0,
    }[rnd]
    result = (whole + up) * quantum
    if result >= Fraction(2) ** (emax + 1):
        away = rnd in ("rn", "rna") or (rnd == "rm" and value < 0) or (rnd == "rp" and value > 0)
        result = math.inf if away else (2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** emax
    return float(result) if value > 0 else -float(result)


SHAPE = {np.float16: F16, np.float32: F32, np.float64: Format(53, -1022, 1023)}


def check(got, exact, dtype, rnd, native):
    """``exact`` holds fractions, or None where the host's IEEE result is already right."""
    fmt = SHAPE[dtype]
    for i, value in enumerate(exact):
        want = native[i] if value is None or value == 0 else dtype(nearest(value, *fmt, rnd))
        if np.isnan(want):
            assert got[i].view(UINT[dtype]) == floats._NAN[np.dtype(dtype).name].view(UINT[dtype])
        elif value == 0 and value is not None:
            assert got[i] == 0
        else:
            assert got[i].view(UINT[dtype]) == dtype(want).view(UINT[dtype]), (
                i,
                value,
                got[i],
                want,
            )


def fractions(*arrays):
    for values in zip(*(a.tolist() for a in arrays), strict=True):
        yield [Fraction(v) for v in values] if all(map(math.isfinite, values)) else None


@pytest.mark.parametrize("rnd", ROUNDINGS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_fma_add_mul_div_sqrt_round_once(dtype, rnd):
    a, b, c = (operands(dtype, 150, seed) for seed in (1, 2, 3))
    c[:40] = -(a * b)[:40]
    wide = np.float64
    host = (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(dtype)
    cases = list(fractions(a, b, c))
    # A finite product that the host overflows does not meet an infinite addend in these operands.
    keep = [i for i in range(a.size) if cases[i] is not None or dtype is not np.float64]
    exact = [None if v is None else v[0] * v[1] + v[2] for v in cases]
    got = floats.fma(a, b, c, rnd)
    check(got[keep], [exact[i] for i in keep], dtype, rnd, host[keep])
    cases = list(fractions(a, b))
    exact = [None if v is None else v[0] + v[1] for v in cases]
    check(floats.add(a, b, rnd), exact, dtype, rnd, a + b)
    exact = [None if v is None else v[0] * v[1] for v in cases]
    check(floats.mul(a, b, rnd), exact, dtype, rnd, a * b)
    exact = [None if v is None or v[1] == 0 else v[0] / v[1] for v in cases]
    check(floats.div(a, b, rnd), exact, dtype, rnd, a / b)
    root = floats.sqrt(np.abs(a), rnd)
    for x, r in zip(np.abs(a), root, strict=True):
        if not (np.isfinite(x) and x > 0):
            continue
        square, down, up = (
            Fraction(float(v)) ** 2 for v in (r, np.nextafter(r, dtype(0)), np.nextafter(r, dtype(np.inf)))
        )
        true = Fraction(float(x))
        if rnd == "rn":
            low, high = Fraction(float(np.nextafter(r, dtype(0)))), Fraction(float(r))
            top = Fraction(float(np.nextafter(r, dtype(np.inf))))
            assert ((low + high) / 2) ** 2 <= true <= ((high + top) / 2) ** 2
        elif rnd == "rp":
            assert down < true <= square
        else:
            assert square <= true < up


def test_fma_single_rounding_where_a_double_would_round_twice():
    # a * b + c is just above a float32 tie, by less than a float64 can see: 1 + 2^-24 + 2^-80.
    a, b = np.float32([1.0 + 2.0**-12]), np.float32([1.0])
    tie = np.float32([2.0**-24])
    one = np.float32([1.0])
    exact_tie = floats.fma(tie, one, one)
    assert exact_tie[0] == 1.0
    above = floats.fma(np.float32([2.0**-24 * (1 + 2.0**-23)]), np.float32([1 - 2.0**-24]), one)
    assert above[0] == np.float32(1 + 2.0**-23)
    twice = (a.astype(np.float64) * b).astype(np.float32)
    assert floats.fma(a, b, np.float32([0.0]))[0] == twice[0]
    tiny = np.float32([2.0**-70])
    product = floats.fma(tiny, tiny, np.float32([1.0 + 2.0**-23]), "rp")
    assert product[0] == np.float32(1.0 + 2.0**-22)


def test_zero_signs_of_exact_sums():
    one, zero = np.float32([1.0]), np.float32([0.0])
    for rnd in ROUNDINGS:
        assert np.signbit(floats.add(one, -one, rnd))[0] == (rnd == "rm")
        assert np.signbit(floats.fma(one, one, -one, rnd))[0] == (rnd == "rm")
        assert not np.signbit(floats.add(zero, zero, rnd))[0]
        assert np.signbit(floats.add(-zero, -zero, rnd))[0]


def test_ftz_sat_min_max_and_nan():
    sub = np.float32([1e-40, -1e-40])
    assert floats.add(sub, np.float32([0, 0]), ftz=True).view(np.uint32).tolist() == [0, 0]
    assert floats.mul(sub, np.ones_like(sub), ftz=True).view(np.uint32).tolist() == [0, 1 << 31]
    x = np.float32([np.nan, -1.0, 0.25, 7.0])
    assert floats.add(x, x * 0, sat=True).tolist() == [0.0, 0.0, 0.25, 1.0]
    nan, one = np.float32([np.nan]), np.float32([1.0])
    assert floats.minimum(nan, one)[0] == 1.0 and floats.maximum(one, nan)[0] == 1.0
    assert floats.minimum(nan, one, nan=True).view(np.uint32)[0] == 0x7FFFFFFF
    assert floats.maximum(nan, -nan).view(np.uint32)[0] == 0x7FFFFFFF
    zeros = np.float32([0.0]), np.float32([-0.0])
    for a, b in (zeros, zeros[::-1]):
        assert np.signbit(floats.minimum(a, b))[0] and not np.signbit(floats.maximum(a, b))[0]


@pytest.mark.parametrize("fmt", [F16, BF16, TF32, F32])
@pytest.mark.parametrize("rnd", [*ROUNDINGS, "rna"])
def test_round_to_any_format(fmt, rnd):
    rng = np.random.default_rng(7)
    scale = np.exp2(rng.integers(fmt.emin - fmt.precision - 2, fmt.emax + 3, 800))
    x = rng.integers(-(2**13), 2**13, 800) * scale * 2.0**-12
    got = round_to(x, fmt, rnd)
    for value, r in zip(x.tolist(), got.tolist(), strict=True):
        if value:
            assert r == nearest(Fraction(value), *fmt, rnd)


def test_approximate_functions_special_values():
    x = np.float32([0.0, -0.0, np.inf, -np.inf, 1.0])
    assert floats.approx("rcp", x).tolist() == [np.inf, -np.inf, 0.0, -0.0, 1.0]
    assert floats.approx("ex2", x).tolist() == [1.0, 1.0, np.inf, 0.0, 2.0]
    assert floats.approx("lg2", x[:3]).tolist() == [-np.inf, -np.inf, np.inf]
    assert floats.approx("tanh", x[2:4]).tolist() == [1.0, -1.0]
    huge = np.float32([2.0**127])
    assert floats.approx_div(huge, huge)[0] == 0.0 and floats.approx_div(huge, huge, full=True)[0] == 1
