"""Rounding exactly once: formats, error-free transformations, rounding to odd, and fractions.

The tools under ``floats.py`` and ``convert.py``. A float64 that is *rounded to odd* (its last bit
remembers that something was lost) rounds to any format of at most 51 bits as the exact value would:
Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", IEEE TC 57(4), 2008.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Format(NamedTuple):
    """A binary format: bits of significand with the hidden one, smallest and largest exponent."""

    precision: int
    emin: int
    emax: int


F16 = Format(11, -14, 15)
BF16 = Format(8, -126, 127)
TF32 = Format(11, -126, 127)
F32 = Format(24, -126, 127)


def round_to(x: Array, fmt: Format, rnd: str = "rn") -> Array:
    """Round float64 values to ``fmt``, kept in float64; ``rnd`` may also be ``rna``, ties away.

    Exact for any float64 input, including results below the smallest normal number; what is too
    large becomes infinity or the largest finite number as IEEE 754 section 7.4 says.
    """
    x = np.asarray(x, np.float64)
    exponent = np.frexp(x)[1] - 1
    quantum = np.maximum(exponent, fmt.emin) - (fmt.precision - 1)
    y = np.ldexp(x, -quantum)
    if rnd == "rn":
        y = np.rint(y)
    elif rnd == "rna":
        y = np.copysign(np.floor(np.abs(y) + 0.5), y)
    elif rnd == "rz":
        y = np.trunc(y)
    elif rnd == "rm":
        y = np.floor(y)
    elif rnd == "rp":
        y = np.ceil(y)
    else:
        raise ValueError(f"a rounding is rn, rna, rz, rm or rp, got {rnd!r}")
    r = np.copysign(np.ldexp(y, quantum), x)
    largest = math.ldexp(2.0 - 2.0 ** (1 - fmt.precision), fmt.emax)
    over = np.abs(r) > largest
    if over.any():
        to_inf = {"rn": over, "rna": over, "rz": over & False, "rm": r < 0, "rp": r > 0}[rnd]
        limit = np.where(to_inf | np.isinf(x), np.inf, largest)
        r = np.where(over, np.copysign(limit, x), r)
    return np.where(np.isfinite(x), r, x)


def two_sum(a: Array, b: Array, s: Array) -> Array:
    """The error of ``s = a + b`` in float64: ``a + b == s + error`` exactly (Knuth)."""
    t = s - a
    error: Array = (a - (s - t)) + (b - t)
    return error


def _split(a: Array) -> tuple[Array, Array]:
    """Veltkamp: a as the sum of two numbers of at most 26 bits each."""
    t = a * 134217729.0
    high = t - (t - a)
    return high, a - high


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """``a * b`` as an exact sum of two float64 (Dekker), away from the ends of the range."""
    p = a * b
    ah, al = _split(a)
    bh, bl = _split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def to_odd(s: Array, error: Array) -> Array:
    """Turn a float64 nearest to ``s + error`` into the one rounded to odd."""
    bits = np.asarray(s, np.float64).view(np.int64)
    inexact = ((error > 0) | (error < 0)) & ((bits & 1) == 0)
    step = np.where((error > 0) == (s > 0), 1, -1)
    return np.asarray(bits + np.where(inexact, step, 0)).view(np.float64)


def odd_add(a: Array, b: Array) -> Array:
    """a + b in float64, rounded to odd; exact zero sums keep their round-to-nearest sign."""
    s = a + b
    return to_odd(s, two_sum(a, b, s))


def odd_divide(a: Array, b: Array) -> Array:
    """a / b in float64 rounded to odd, for a and b in the range of float32."""
    q = a / b
    high, low = two_product(q, b)
    residual = (a - high) - low
    return to_odd(q, np.where(b < 0, -residual, residual))


def odd_sqrt(a: Array) -> Array:
    """The square root in float64 rounded to odd, for a in the range of float32."""
    r = np.sqrt(a)
    high, low = two_product(r, r)
    return to_odd(r, np.where(a > 0, (a - high) - low, 0.0))


# -------------------------------------------------------------------- float64 by exact fractions


def _round_fraction(v: Fraction, rnd: str) -> float:
    """The float64 of a non-zero fraction in any rounding mode."""
    try:
        r = v.numerator / v.denominator  # correctly rounded by the language, subnormals included
    except OverflowError:
        r = math.inf if v > 0 else -math.inf
    if r == 0.0:
        r = 0.0 if v > 0 else -0.0
    if math.isinf(r):
        above, below = r > 0, r < 0
    else:
        above, below = Fraction(r) > v, Fraction(r) < v
    if above and (rnd == "rm" or (rnd == "rz" and v > 0)):
        return math.nextafter(r, -math.inf)
    if below and (rnd == "rp" or (rnd == "rz" and v < 0)):
        return math.nextafter(r, math.inf)
    return r


def fma_one(a: float, b: float, c: float, rnd: str) -> float:
    """fma of three Python floats, exactly."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return float(np.float64(a) * np.float64(b) + np.float64(c))
    if not math.isfinite(c):
        return c
    v = Fraction(a) * Fraction(b) + Fraction(c)
    if v:
        return _round_fraction(v, rnd)
    if math.copysign(1.0, a) * math.copysign(1.0, b) == math.copysign(1.0, c):
        return math.copysign(0.0, c)
    return -0.0 if rnd == "rm" else 0.0


def divide_one(a: float, b: float, rnd: str) -> float:
    """a / b of two Python floats, exactly rounded."""
    if not (math.isfinite(a) and math.isfinite(b)) or a == 0 or b == 0:
        return float(np.float64(a) / np.float64(b))
    return _round_fraction(Fraction(a) / Fraction(b), rnd)


def sqrt_one(a: float, rnd: str) -> float:
    """The square root of a Python float, exactly rounded."""
    r = float(np.sqrt(np.float64(a)))
    if not math.isfinite(r) or r == 0:
        return r
    square = Fraction(r) ** 2
    if rnd in ("rz", "rm") and square > Fraction(a):
        return math.nextafter(r, 0.0)
    if rnd == "rp" and square < Fraction(a):
        return math.nextafter(r, math.inf)
    return r


def each(function: Callable[..., float], rnd: str, *args: Array) -> Array:
    """Apply an exact scalar function element by element: slow, for rare modes and values."""
    arrays = np.broadcast_arrays(*args)
    flat = [a.ravel().tolist() for a in arrays]
    out = np.array([function(*v, rnd) for v in zip(*flat, strict=True)], np.float64)
    return out.reshape(arrays[0].shape)
