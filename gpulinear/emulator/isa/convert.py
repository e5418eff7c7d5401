"""Conversions: cvt and cvt.pack (PTX ISA 9.7.9.21, 9.7.9.22; formats and rounding in 6.5).

Not modelled: stochastic rounding (.rs), and the formats of 8 bits and less (e4m3, e5m2, e2m3, e3m2, e2m1, ue8m0, s2f6).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import floats
from gpulinear.emulator.conversions import (
    INTEGRAL,
    float_to_integer,
    integer_to_float,
    narrow,
    relu,
    satfinite,
    saturate_integer,
    to_float,
)
from gpulinear.emulator.isa import Form, Semantics, elementwise
from gpulinear.emulator.packed import join
from gpulinear.emulator.types import DTYPES

Array = npt.NDArray[Any]

_INTS = "u8|u16|u32|u64|s8|s16|s32|s64"
_RND = "<rnd:rn|rz|rm|rp>"
_IRND = "<rnd:rni|rzi|rmi|rpi>"


# ------------------------------------------------------------------------------------- integers


@elementwise(f"cvt[.sat].<D:{_INTS}>.<A:{_INTS}>", "=D, A", "9.7.9.21")
def integer(form: Form) -> Semantics:
    """Extended by the signedness of the source, or chopped."""
    dtype = DTYPES[form["D"]]
    if form["sat"]:
        return lambda a: saturate_integer(a, dtype)
    return lambda a: a.astype(dtype)


@elementwise(f"cvt.{_IRND}[.ftz][.sat].<D:{_INTS}>.<A:f32>", "=D, A", "9.7.9.21")
@elementwise(f"cvt.{_IRND}[.sat].<D:{_INTS}>.<A:f16|bf16|f64>", "=D, A", "9.7.9.21")
def to_integer(form: Form) -> Semantics:
    """Clamped to the range of the integer with or without ``.sat``."""
    dtype, kind, rnd = DTYPES[form["D"]], form["A"], form["rnd"]
    if form.get("ftz"):
        return lambda a: float_to_integer(floats.flush(a), dtype, rnd, False)
    return lambda a: float_to_integer(to_float(a, kind), dtype, rnd, kind == "f64")


@elementwise(f"cvt.{_RND}[.ftz][.sat].<D:f32>.<A:{_INTS}>", "=D, A", "9.7.9.21")
@elementwise(f"cvt.{_RND}[.sat].<D:f16|f64>.<A:{_INTS}>", "=D, A", "9.7.9.21")
@elementwise(f"cvt.{_RND}.<D:bf16>.<A:{_INTS}>", "=D, A", "9.7.9.21")
def from_integer(form: Form) -> Semantics:
    """No integer is subnormal as a float, so ``.ftz`` changes nothing; [0, 1] holds two of them."""
    kind, rnd = form["D"], form["rnd"]
    if form.get("sat"):
        return lambda a: integer_to_float(np.clip(a, a.dtype.type(0), a.dtype.type(1)), kind, rnd)
    return lambda a: integer_to_float(a, kind, rnd)


# --------------------------------------------------------------------------------------- floats


def _float(form: Form) -> Semantics:
    """A float into another type: flushed if it is f32, made integral, clamped, rounded, flushed if it became f32."""
    source, target, rnd = form["A"], form["D"], form.get("rnd") or "rn"
    flush_source, flush_result = (bool(form.get("ftz")) and kind == "f32" for kind in (source, target))
    sat, clamp, finite = bool(form.get("sat")), bool(form.get("relu")), bool(form.get("satfinite"))

    def convert(a: Array) -> Array:
        x = to_float(a, source)
        if flush_source:
            x = floats.flush(x)
        if rnd in INTEGRAL:
            x = INTEGRAL[rnd](x)
        if sat:
            x = floats.saturate(x)
        if clamp:
            x = relu(x)
        if finite:
            x = satfinite(x, target)
        r = narrow(x, target, "rn" if rnd in INTEGRAL else rnd)
        return floats.flush(r) if flush_result else r

    return convert


@elementwise("cvt[.ftz][.sat].<D:f32>.<A:f16|bf16|f32>", "=D, A", "9.7.9.21")
@elementwise("cvt[.ftz][.sat].<D:f64>.<A:f32>", "=D, A", "9.7.9.21")
@elementwise("cvt[.sat].<D:f64>.<A:f16|bf16|f64>", "=D, A", "9.7.9.21")
@elementwise("cvt[.sat].<D:f16>.<A:f16>", "=D, A", "9.7.9.21")
def widen(form: Form) -> Semantics:
    """The target holds every value of the source: no rounding."""
    return _float(form)


@elementwise(f"cvt.{_RND}[.ftz][.sat].<D:f32>.<A:f64>", "=D, A", "9.7.9.21")
@elementwise(f"cvt.{_RND}[.ftz][.sat].<D:f16>.<A:f32>", "=D, A", "9.7.9.21")
@elementwise(f"cvt.{_RND}[.sat].<D:f16>.<A:f64|bf16>", "=D, A", "9.7.9.21")
@elementwise(f"cvt.{_RND}.<D:bf16>.<A:f16|f32|f64>", "=D, A", "9.7.9.21")
@elementwise("cvt.<rnd:rn|rz>[.relu][.satfinite].<D:f16|bf16>.<A:f32>", "=D, A", "9.7.9.21")
@elementwise("cvt.<rnd:rna>[.satfinite].<D:tf32>.<A:f32>", "=D, A", "9.7.9.21")
@elementwise("cvt.<rnd:rn|rz>[.satfinite][.relu].<D:tf32>.<A:f32>", "=D, A", "9.7.9.21")
def round_float(form: Form) -> Semantics:
    """The low 13 bits of a tf32 result are zeros."""
    return _float(form)


@elementwise(f"cvt.{_IRND}[.ftz][.sat].<D:f32>.<A:f32>", "=D, A", "9.7.9.21")
@elementwise(f"cvt.{_IRND}[.sat].<D:f16>.<A:f16>", "=D, A", "9.7.9.21")
@elementwise(f"cvt.{_IRND}[.sat].<D:f64>.<A:f64>", "=D, A", "9.7.9.21")
@elementwise(f"cvt.{_IRND}.<D:bf16>.<A:bf16>", "=D, A", "9.7.9.21")
def round_to_integral(form: Form) -> Semantics:
    """An integral value in the type of the source."""
    return _float(form)


@elementwise("cvt.<rnd:rn|rz>[.relu][.satfinite].<P:f16x2|bf16x2>.<A:f32>", "=P, A, A", "9.7.9.21")
def round_pair(form: Form) -> Semantics:
    """The first source goes to the upper half."""
    convert = _float(form | {"D": form["P"].removesuffix("x2")})
    return lambda a, b: join(convert(b), convert(a))


# ------------------------------------------------------------------------------------- cvt.pack


def _field(kind: str) -> tuple[int, int, int]:
    """The width of an integer type such as u4, its smallest and its largest value."""
    width = int(kind[1:])
    if kind[0] == "u":
        return width, 0, (1 << width) - 1
    return width, -(1 << (width - 1)), (1 << (width - 1)) - 1


@elementwise("cvt.pack.sat.<F:u16|s16>.s32", "=u32, s32, s32", "9.7.9.22")
@elementwise("cvt.pack.sat.<F:u2|s2|u4|s4|u8|s8>.s32.b32", "=u32, s32, s32, b32", "9.7.9.22")
def pack(form: Form) -> Semantics:
    """The clamped b in the lowest bits, the clamped a above it, and above both the low bits of c."""
    width, low, high = _field(form["F"])
    mask = np.uint32((1 << width) - 1)

    def field(x: Array) -> Array:
        bits: Array = np.clip(x, np.int32(low), np.int32(high)).view(np.uint32) & mask
        return bits

    def packed(a: Array, b: Array, *c: Array) -> Array:
        both: Array = field(b) | (field(a) << width)
        return both | (c[0] << (2 * width)) if c else both

    return packed
