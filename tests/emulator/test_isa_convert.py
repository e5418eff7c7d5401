"""cvt and cvt.pack against integers and fractions (PTX ISA 9.7.9.21, 9.7.9.22)."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from gpulinear.emulator.errors import NotModelledError
from tests.emulator import reference
from tests.emulator.reference import NAN, decode, encode, flush, patterns
from tests.emulator.semantics import bits_of, check_bits, edges, evaluate, sweep

INTS = [kind + str(bits) for kind in "us" for bits in (8, 16, 32, 64)]
FLOATS = ["f16", "bf16", "f32", "f64"]
UINT = {"f16": np.uint16, "bf16": np.uint16, "f32": np.uint32, "f64": np.uint64}
RND = ["rn", "rz", "rm", "rp"]
INTEGRAL = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}
WIDTH = {kind: reference.FORMATS[kind].width for kind in FLOATS}


def limits(kind):
    bits = int(kind[1:])
    return (0, 2**bits - 1) if kind[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def flushed(bits, kind):
    """``.ftz`` applies to f32 alone."""
    return flush(bits, kind) if kind == "f32" else bits


def fine(kind):
    """Edge cases, and numbers beside and on the ties of every narrower format."""
    fmt = reference.FORMATS[kind]
    bits = set(patterns(kind))
    bias = (1 << (fmt.exponent - 1)) - 1
    for other in FLOATS:
        narrow = reference.FORMATS[other]
        if narrow.fraction >= fmt.fraction:
            continue
        drop = fmt.fraction - narrow.fraction
        # Exponents at one, at both ends of the narrower format, and in its subnormals.
        lowest = 1 - ((1 << (narrow.exponent - 1)) - 1)
        for exponent in {
            0,
            (1 << (narrow.exponent - 1)) - 1,
            lowest,
            lowest - 1,
            lowest - 5,
            lowest - narrow.fraction - 1,
        }:
            if not 0 < exponent + bias < 2 * bias + 1:
                continue
            for low in (0, 1, (1 << drop) // 2 - 1, (1 << drop) // 2, (1 << drop) // 2 + 1, (1 << drop) - 1):
                for high in (0, 1, (1 << narrow.fraction) - 1):
                    bits.add((exponent + bias) << fmt.fraction | high << drop | low)
    return sorted(bits | {b | 1 << (fmt.width - 1) for b in bits})


# ------------------------------------------------------------------------------------- integers


@pytest.mark.parametrize("target", INTS)
def test_integers_are_extended_by_the_source_and_chopped(target):
    for source in INTS:
        sweep(f"cvt.{target}.{source}", target, [source], lambda a: a)
        low, high = limits(target)
        sweep(f"cvt.sat.{target}.{source}", target, [source], lambda a, low=low, high=high: max(low, min(high, a)))


@pytest.mark.parametrize("irnd", INTEGRAL)
@pytest.mark.parametrize("source", FLOATS)
def test_floats_to_integers_clamp(source, irnd):
    bits = fine(source)
    # Halves between integers, and what is just below and above the limits of the integers.
    for value in (Fraction(1, 2), Fraction(3, 2), Fraction(5, 2), Fraction(7, 2), Fraction(255, 2), Fraction(511, 2)):
        bits += [encode(value, source), encode(-value, source)]
    for power, sign in product((7, 8, 15, 16, 31, 32, 63, 64), (1, -1)):
        at = encode(sign * Fraction(2) ** power, source)
        bits += [at, at + 1, at - 1]
    for target in INTS:
        low, high = limits(target)
        width = int(target[1:])

        def want(b, low=low, high=high, width=width):
            value = decode(b, source)
            if reference.is_nan(value):
                return 1 << (width - 1) if source == "f64" or width == 64 else 0
            if isinstance(value, float) and math.isinf(value):
                return (high if value > 0 else low) & ((1 << width) - 1)
            whole = INTEGRAL[irnd](Fraction(value))
            return max(low, min(high, whole)) & ((1 << width) - 1)

        got = evaluate(f"cvt.{irnd}.{target}.{source}", np.array(bits, UINT[source])).tolist()
        for b, value in zip(bits, got, strict=True):
            assert value & ((1 << width) - 1) == want(b), (target, hex(b), value)
        assert evaluate(f"cvt.{irnd}.sat.{target}.{source}", np.array(bits, UINT[source])).tolist() == got


def test_ftz_before_the_rounding_to_an_integer():
    tiny = np.array([1, 0x80000001], np.uint32)
    assert evaluate("cvt.rpi.s32.f32", tiny).tolist() == [1, 0]
    assert evaluate("cvt.rpi.ftz.s32.f32", tiny).tolist() == [0, 0]
    assert evaluate("cvt.rmi.ftz.s32.f32", tiny).tolist() == [0, 0]


@pytest.mark.parametrize("rnd", RND)
@pytest.mark.parametrize("target", FLOATS)
def test_integers_to_floats_round_once(target, rnd):
    digits = reference.FORMATS[target].fraction + 1
    for source in INTS:
        low, high = limits(source)
        values = set(edges(source)) if source not in ("u8", "s8") else set(range(low, high + 1))
        for power in range(digits, int(source[1:]) + 1):
            unit = 1 << (power - digits)
            for tie in (unit // 2, unit // 2 - 1, unit // 2 + 1, 1, unit - 1):
                values |= {(1 << (power - 1)) + tie, (1 << (power - 1)) + unit + tie, (1 << power) - unit + tie}
        values |= {-v for v in values}
        values = sorted(v for v in values if low <= v <= high)
        got = bits_of(evaluate(f"cvt.{rnd}.{target}.{source}", values)).tolist()
        want = [encode(Fraction(v) if v else 0.0, target, rnd) for v in values]
        for value, result, expected in zip(values, got, want, strict=True):
            assert result == expected, (source, value, hex(result), hex(expected))


def test_integers_to_saturated_floats():
    for target in ("f16", "f32", "f64"):
        one = encode(Fraction(1), target)
        for source in INTS:
            values = [v for v in (0, 1, 2, 100, -1, -100) if limits(source)[0] <= v]
            got = bits_of(evaluate(f"cvt.rn.sat.{target}.{source}", values)).tolist()
            assert got == [one if v > 0 else 0 for v in values]


# --------------------------------------------------------------------------------------- floats


def float_result(source, target, rnd, *, ftz=False, sat=False, relu=False, satfinite=False, irnd=None):
    """The ISA's conversion on bit patterns, by fractions."""

    def on_bits(bits):
        value = decode(flushed(bits, source) if ftz else bits, source)
        if irnd and isinstance(value, Fraction):
            whole = INTEGRAL[irnd](value)
            value = Fraction(whole) if whole else (-0.0 if value < 0 else 0.0)
        nan = reference.is_nan(value)
        if sat:
            value = 0.0 if nan or not value > 0 else min(value, Fraction(1))
        if relu and not nan and (value < 0 or value == 0):
            value = 0.0
        if satfinite and not nan:
            fmt = reference.FORMATS[target]
            largest = (2 - Fraction(2) ** -fmt.fraction) * Fraction(2) ** ((1 << (fmt.exponent - 1)) - 1)
            value = max(-largest, min(largest, value)) if value else value
        result = encode(value, target, rnd)
        return flushed(result, target) if ftz else result

    return on_bits


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("f32", "f16"),
        ("f32", "bf16"),
        ("f32", "f32"),
        ("f64", "f16"),
        ("f64", "bf16"),
        ("f64", "f32"),
        ("f64", "f64"),
        ("f16", "f16"),
    ],
)
def test_exact_conversions(target, source):
    bits = fine(source)
    check_bits(f"cvt.{target}.{source}", source, bits, float_result(source, target, "rn"))
    check_bits(f"cvt.sat.{target}.{source}", source, bits, float_result(source, target, "rn", sat=True))
    if "f32" in (target, source):
        check_bits(f"cvt.ftz.{target}.{source}", source, bits, float_result(source, target, "rn", ftz=True))


@pytest.mark.parametrize("rnd", RND)
@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("f32", "f64"),
        ("f16", "f32"),
        ("f16", "f64"),
        ("f16", "bf16"),
        ("bf16", "f32"),
        ("bf16", "f64"),
        ("bf16", "f16"),
    ],
)
def test_rounding_conversions(target, source, rnd):
    bits = fine(source)
    check_bits(f"cvt.{rnd}.{target}.{source}", source, bits, float_result(source, target, rnd))
    if target != "bf16":
        check_bits(
            f"cvt.{rnd}.sat.{target}.{source}",
            source,
            bits,
            float_result(source, target, rnd, sat=True),
        )
        if "f32" in (target, source):
            check_bits(
                f"cvt.{rnd}.ftz.{target}.{source}",
                source,
                bits,
                float_result(source, target, rnd, ftz=True),
            )


@pytest.mark.parametrize("rnd", ["rn", "rz"])
@pytest.mark.parametrize("target", ["f16", "bf16"])
def test_relu_satfinite_and_pairs(target, rnd):
    bits = fine("f32")
    x = np.array(bits, np.uint32)
    for modifiers in ("", ".relu", ".satfinite", ".relu.satfinite"):
        options = {"relu": "relu" in modifiers, "satfinite": "satfinite" in modifiers}
        want = float_result("f32", target, rnd, **options)
        check_bits(f"cvt.{rnd}{modifiers}.{target}.f32", "f32", bits, want)
        # The first source is the upper half.
        pair = evaluate(f"cvt.{rnd}{modifiers}.{target}x2.f32", x, x[::-1]).tolist()
        assert pair == [want(a) << 16 | want(b) for a, b in zip(bits, bits[::-1], strict=True)]


@pytest.mark.parametrize("name", ["rna", "rna.satfinite", "rn", "rz", "rn.satfinite", "rn.relu", "rz.satfinite.relu"])
def test_tf32(name):
    rnd = name.split(".")[0]
    options = {"relu": "relu" in name, "satfinite": "satfinite" in name}
    bits = fine("f32")
    for exponent in (1, 100, 127, 254):
        for low in (0xFFF, 0x1000, 0x1001, 0x1FFF, 0x3000):
            bits += [exponent << 23 | low, exponent << 23 | 0x7FE000 | low, 1 << 31 | exponent << 23 | low]
    bits += [0x1000, 0xFFF, 0x80003000, 0x7FFFFF]
    check_bits(f"cvt.{name}.tf32.f32", "f32", bits, float_result("f32", "tf32", rnd, **options))


@pytest.mark.parametrize("irnd", INTEGRAL)
@pytest.mark.parametrize("kind", FLOATS)
def test_rounding_to_an_integral_value(kind, irnd):
    bits = fine(kind)
    for value in (Fraction(1, 2), Fraction(3, 2), Fraction(5, 2), Fraction(1, 4), Fraction(127, 2)):
        bits += [encode(value, kind), encode(-value, kind)]
    check_bits(f"cvt.{irnd}.{kind}.{kind}", kind, bits, float_result(kind, kind, "rn", irnd=irnd))
    if kind != "bf16":
        check_bits(
            f"cvt.{irnd}.sat.{kind}.{kind}",
            kind,
            bits,
            float_result(kind, kind, "rn", irnd=irnd, sat=True),
        )
    if kind == "f32":
        check_bits(
            f"cvt.{irnd}.ftz.{kind}.{kind}",
            kind,
            bits,
            float_result(kind, kind, "rn", irnd=irnd, ftz=True),
        )


def test_nan_results_are_canonical():
    loud = np.array([0xFF800001, 0x7FC12345], np.uint32)
    assert evaluate("cvt.rn.f16.f32", loud).tolist() == [NAN["f16"]] * 2
    assert evaluate("cvt.rn.bf16.f32", loud).tolist() == [NAN["bf16"]] * 2
    assert evaluate("cvt.rn.satfinite.bf16.f32", loud).tolist() == [NAN["bf16"]] * 2
    assert bits_of(evaluate("cvt.f64.f32", loud)).tolist() == [NAN["f64"]] * 2
    assert bits_of(evaluate("cvt.f32.f16", [0xFC01, 0x7E00])).tolist() == [NAN["f32"]] * 2


# ------------------------------------------------------------------------------------- cvt.pack


@pytest.mark.parametrize("kind", ["u16", "s16", "u2", "s2", "u4", "s4", "u8", "s8"])
def test_pack(kind):
    low, high = limits(kind)
    bits = int(kind[1:])
    mask = (1 << bits) - 1

    def pack(a, b, c=0):
        a, b = (max(low, min(high, v)) & mask for v in (a, b))
        return b | a << bits | c << 2 * bits

    values = [-(2**31), -40000, -129, -3, -1, 0, 1, 2, 3, 7, 130, 70000, 2**31 - 1]
    if bits == 16:
        sweep(f"cvt.pack.sat.{kind}.s32", "u32", ["s32"] * 2, pack, at0=values, at1=values)
    else:
        third = [0, 0xFFFFFFFF, 0x12345678]
        sweep(f"cvt.pack.sat.{kind}.s32.b32", "u32", ["s32", "s32", "b32"], pack, at0=values, at1=values, at2=third)


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("cvt.f16.f32", 1),
        ("cvt.rn.sat.bf16.f32", 1),
        ("cvt.s32.f32", 1),
        ("cvt.rni.f32.f64", 1),
        ("cvt.f32.s32", 1),
        ("cvt.rna.bf16.f32", 1),
        ("cvt.rn.f16x2.f32", 1),
        ("cvt.rs.f16x2.f32", 3),
        ("cvt.rn.satfinite.e4m3x2.f32", 2),
        ("cvt.rm.tf32.f32", 1),
        ("cvt.pack.sat.u16.s32", 3),
        ("cvt.pack.sat.u8.s32.b32", 2),
    ],
)
def test_forms_that_do_not_exist_or_are_not_modelled_are_refused(name, sources):
    with pytest.raises(NotModelledError):
        evaluate(name, *[[1]] * sources)
