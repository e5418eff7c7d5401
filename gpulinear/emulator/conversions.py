"""Number formats into one another: halves, tf32, float32, float64 and integers (PTX ISA 9.7.9.21 cvt, 6.5).

A register of type f16, bf16 or tf32 holds bits; ``to_float`` and ``narrow`` lead from them to floats and back. Each
conversion rounds once. NaN results are canonical, as in ``floats.py``. The caller holds ``np.errstate(all="ignore")``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpulinear.emulator.floats import canonical
from gpulinear.emulator.rounding import BF16, F16, F32, TF32, Array, round_to, to_odd, two_sum

LARGEST: dict[str, float] = {
    "f16": 65504.0,
    "bf16": (2.0 - 2.0**-7) * 2.0**127,
    "tf32": (2.0 - 2.0**-10) * 2.0**127,
}
"""The largest finite number of a format: MAX_NORM of ``.satfinite``."""

INTEGRAL: dict[str, Callable[[Array], Array]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
"""The integer rounding modifiers (PTX ISA 6.5.2): a float rounded to an integral value of its own type."""


def to_float(bits: Array, kind: str) -> Array:
    """The exact value of a register as a float: f16 and bf16 become float32, f32 and f64 are what they are."""
    if kind == "f16":
        return bits.view(np.float16).astype(np.float32)
    if kind == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits


def flush_half(bits: Array, kind: str) -> Array:
    """``.ftz`` on f16 or bf16 bits: subnormals become zeros of the same sign."""
    normal = (bits & np.uint16(0x7C00 if kind == "f16" else 0x7F80)) != 0
    return np.where(normal, bits, bits & np.uint16(0x8000))


def relu(x: Array) -> Array:
    """``.relu``: what is negative becomes +0, and so does -0; NaN stays."""
    return np.where((x > 0) | (x != x), x, x.dtype.type(0))


def satfinite(x: Array, kind: str) -> Array:
    """``.satfinite``: values clamped to the largest finite ones of a format, before they are rounded to it."""
    largest = x.dtype.type(LARGEST[kind])
    clamped: Array = np.clip(x, -largest, largest)
    return clamped


def _cut(x: Array, dropped: int, rnd: str) -> Array:
    """The bits of float32 values, rounded to their upper ``32 - dropped`` bits; anything for NaN.

    Bits of a float are ordered like its magnitude, across subnormals and up to infinity: to round is to add, then cut.
    """
    bits = x.view(np.uint32)
    unit = 1 << dropped
    if rnd == "rn":
        bits = bits + ((bits >> dropped) & 1) + np.uint32(unit // 2 - 1)
    elif rnd == "rna":
        bits = bits + np.uint32(unit // 2)
    elif rnd in ("rm", "rp"):
        away = (bits >> 31) == (rnd == "rm")
        bits = bits + np.where(away, np.uint32(unit - 1), np.uint32(0))
    cut: Array = bits & np.uint32(0x100000000 - unit)
    return cut


def narrow(x: Array, kind: str, rnd: str = "rn") -> Array:
    """Float32 or float64 values as registers of type ``kind``, rounded once (``rna``: ties away from zero)."""
    if kind == "f64":
        return canonical(x.astype(np.float64))
    if kind == "f32":
        nearest = rnd == "rn" or x.dtype == np.float32
        return canonical(x.astype(np.float32) if nearest else round_to(x, F32, rnd).astype(np.float32))
    if kind == "f16":
        half = x.astype(np.float16) if rnd == "rn" else round_to(x, F16, rnd).astype(np.float16)
        return np.where(x == x, half.view(np.uint16), np.uint16(0x7FFF))
    dropped = 16 if kind == "bf16" else 13
    if x.dtype == np.float32:
        bits = _cut(x, dropped, rnd)
    else:
        bits = round_to(x, BF16 if kind == "bf16" else TF32, rnd).astype(np.float32).view(np.uint32)
    bits = np.where(x == x, bits, np.uint32(0x7FFFFFFF))
    return (bits >> 16).astype(np.uint16) if kind == "bf16" else bits


def integer_to_float(a: Array, kind: str, rnd: str) -> Array:
    """Integers as registers of type f16, bf16, f32 or f64, rounded once."""
    if a.dtype.itemsize < 8:
        return narrow(a.astype(np.float64), kind, rnd)
    high, low = (a >> 32).astype(np.float64) * 2.0**32, (a & 0xFFFFFFFF).astype(np.float64)
    s = high + low
    error = two_sum(high, low, s)
    if kind != "f64":
        return narrow(to_odd(s, error), kind, rnd)
    # s is the nearest float64; a directed rounding takes its neighbour where s lies on the wrong side.
    if rnd == "rn":
        return s
    if rnd == "rz":
        wrong = ((error < 0) & (s > 0)) | ((error > 0) & (s < 0))
        return np.where(wrong, np.nextafter(s, 0.0), s)
    wrong = error < 0 if rnd == "rm" else error > 0
    return np.where(wrong, np.nextafter(s, -np.inf if rnd == "rm" else np.inf), s)


def float_to_integer(x: Array, dtype: np.dtype[Any], irnd: str, from_f64: bool) -> Array:
    """Floats rounded to integral values and clamped to the range of an integer type.

    NaN becomes 0 if neither type has 64 bits, and the number with only the top bit set otherwise.
    """
    y = INTEGRAL[irnd](x)
    bits = 8 * dtype.itemsize
    lowest, highest = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    over, under, nan = y >= float(highest + 1), y < float(lowest), y != y
    r = np.where(over | under | nan, y.dtype.type(0), y).astype(dtype)
    r = np.where(over, dtype.type(highest), r)
    r = np.where(under, dtype.type(lowest), r)
    if from_f64 or bits == 64:
        top = dtype.type(lowest if lowest else 1 << (bits - 1))
        r = np.where(nan, top, r)
    return r


def saturate_integer(a: Array, dtype: np.dtype[Any]) -> Array:
    """Integers clamped to the range of another integer type."""
    source, target = np.iinfo(a.dtype), np.iinfo(dtype)
    low, high = max(source.min, target.min), min(source.max, target.max)
    clamped: Array = np.clip(a, a.dtype.type(low), a.dtype.type(high)).astype(dtype)
    return clamped
