"""IEEE numbers on Python integers and fractions alone: what the emulator's floating point is compared with.

A number is a Fraction, or a Python float for what a fraction cannot be: zeros with their signs, infinities and NaN.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import product
from typing import NamedTuple

Number = Fraction | float


class Ieee(NamedTuple):
    """Bits of the exponent and of the fraction."""

    exponent: int
    fraction: int

    @property
    def width(self) -> int:
        return 1 + self.exponent + self.fraction


FORMATS = {"f16": Ieee(5, 10), "bf16": Ieee(8, 7), "tf32": Ieee(8, 10), "f32": Ieee(8, 23), "f64": Ieee(11, 52)}
NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "tf32": 0x7FFFFFFF, "f32": 0x7FFFFFFF, "f64": 0x7FF8000000000000}
"""The canonical NaN of the emulator; bits of a tf32 are those of the float32."""


@cache
def decode(bits: int, kind: str) -> Number:
    """The number that the bits stand for."""
    fmt = FORMATS[kind]
    sign = -1 if bits >> (fmt.width - 1) else 1
    exponent = (bits >> fmt.fraction) & ((1 << fmt.exponent) - 1)
    fraction = bits & ((1 << fmt.fraction) - 1)
    if exponent == (1 << fmt.exponent) - 1:
        return math.nan if fraction else sign * math.inf
    if exponent:
        fraction |= 1 << fmt.fraction
    if not fraction:
        return sign * 0.0
    power = max(exponent, 1) - ((1 << (fmt.exponent - 1)) - 1) - fmt.fraction
    return sign * Fraction(fraction) * Fraction(2) ** power


def encode(value: Number, kind: str, rnd: str = "rn") -> int:
    """The bits of a number, rounded once; rna takes ties away from zero."""
    fmt = FORMATS[kind]
    top = 1 << (fmt.width - 1)
    infinity = ((1 << fmt.exponent) - 1) << fmt.fraction
    shift = 13 if kind == "tf32" else 0
    if isinstance(value, float):
        if math.isnan(value):
            return NAN[kind]
        magnitude = infinity if math.isinf(value) else 0
        return (magnitude | (top if math.copysign(1, value) < 0 else 0)) << shift
    numerator, denominator, negative = abs(value.numerator), value.denominator, value < 0
    bias = (1 << (fmt.exponent - 1)) - 1
    exponent = numerator.bit_length() - denominator.bit_length()
    exponent -= (numerator << max(0, -exponent)) < (denominator << max(0, exponent))
    exponent = max(exponent, 1 - bias)
    quantum = exponent - fmt.fraction  # the value of the last bit is 2^quantum
    unit = denominator << max(0, quantum)
    whole, rest = divmod(numerator << max(0, -quantum), unit)
    up = {
        "rn": 2 * rest > unit or (2 * rest == unit and whole % 2 == 1),
        "rna": 2 * rest >= unit,
        "rz": False,
        "rm": negative and rest > 0,
        "rp": not negative and rest > 0,
    }[rnd]
    # Bits of a float are ordered like its magnitude: a carry moves into the exponent.
    magnitude = ((exponent + bias - 1) << fmt.fraction) + whole + up
    if magnitude >= infinity:
        away = rnd in ("rn", "rna") or rnd == ("rm" if negative else "rp")
        magnitude = infinity if away else infinity - 1
    return (magnitude | (top if negative else 0)) << shift


def is_nan(value: Number) -> bool:
    return isinstance(value, float) and math.isnan(value)


def negative(value: Number) -> bool:
    """The sign bit of a number that is not NaN."""
    return math.copysign(1, value) < 0 if isinstance(value, float) else value < 0


def multiply(a: Number, b: Number) -> Number:
    """The exact product."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a * b
    sign = -1.0 if negative(a) != negative(b) else 1.0
    small = [v if isinstance(v, float) else 1.0 for v in (a, b)]
    return sign * abs(small[0] * small[1])


def add(a: Number, b: Number, rnd: str = "rn") -> Number:
    """The exact sum; ``rnd`` decides the sign of an exact zero."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a + b or (-0.0 if rnd == "rm" else 0.0)
    if isinstance(a, float) and isinstance(b, float):
        if a == b == 0 and negative(a) != negative(b):
            return -0.0 if rnd == "rm" else 0.0
        return a + b
    special, finite = (a, b) if isinstance(a, float) else (b, a)
    return finite if special == 0 else special


def fma(a: Number, b: Number, c: Number, rnd: str = "rn") -> Number:
    return add(multiply(a, b), c, rnd)


@cache
def flush(bits: int, kind: str) -> int:
    """``.ftz``: the bits of subnormals become those of zeros with the same sign."""
    fmt = FORMATS[kind]
    return bits if bits >> fmt.fraction & ((1 << fmt.exponent) - 1) else bits & 1 << (fmt.width - 1)


def rounded(
    function: Callable[..., Number],
    kind: str,
    rnd: str = "rn",
    ftz: bool = False,
    sat: bool = False,
    relu: bool = False,
) -> Callable[..., int]:
    """A function of exact numbers as one of bit patterns: flushed, rounded once, clamped."""
    one = encode(Fraction(1), kind)

    def on_bits(*bits: int) -> int:
        result = encode(function(*[decode(flush(b, kind) if ftz else b, kind) for b in bits]), kind, rnd)
        if ftz:
            result = flush(result, kind)
        value = decode(result, kind)
        if sat:
            return 0 if is_nan(value) or negative(value) else min(result, one)
        return 0 if relu and not is_nan(value) and negative(value) else result

    return on_bits


def compare(a: Number, b: Number) -> int | None:
    """-1, 0 or 1; None if either is NaN."""
    if is_nan(a) or is_nan(b):
        return None
    return (a > b) - (a < b)


def patterns(kind: str) -> list[int]:
    """Bit patterns of all classes, and numbers whose sums and products meet ties and both ends of the range."""
    fmt = FORMATS[kind]
    one = ((1 << (fmt.exponent - 1)) - 1) << fmt.fraction
    infinity = ((1 << fmt.exponent) - 1) << fmt.fraction
    tiny = 1 << fmt.fraction  # the smallest normal number
    positive = [0, 1, 2, 3, tiny // 2, tiny - 1, tiny, tiny + 1, one, one + 1, one - 1, one + tiny // 2]
    positive += [one + (fmt.fraction + 1) * tiny, one - (fmt.fraction + 1) * tiny, one - (fmt.fraction + 2) * tiny + 1]
    positive += [
        (one + tiny) // 2 - (tiny >> 1),
        infinity - 1,
        infinity - tiny,
        infinity,
        infinity + 1,
        infinity + tiny // 2,
    ]
    return positive + [p | 1 << (fmt.width - 1) for p in positive]


def sample(kind: str, arity: int, count: int, seed: int) -> list[tuple[int, ...]]:
    """Combinations of edge cases, all of them if they are few enough."""
    cases = list(product(patterns(kind), repeat=arity))
    return cases if len(cases) <= count else random.Random(seed).sample(cases, count)


def mixture(kind: str, arity: int, count: int, seed: int) -> list[tuple[int, ...]]:
    """Combinations of edge cases and of random bit patterns."""
    rng, edge, width = random.Random(seed), patterns(kind), FORMATS[kind].width
    return [tuple(rng.choice([rng.choice(edge), rng.getrandbits(width)]) for _ in range(arity)) for _ in range(count)]
