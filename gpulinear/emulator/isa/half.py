"""Half precision arithmetic on f16, bf16, f16x2 and bf16x2 (PTX ISA 9.7.4).

Sums and products are taken in float32 and then rounded to the half type. That equals one rounding: float32 has at
least twice the bits of either type and two more (Figueroa, "When is double rounding innocuous?", SIGNUM 30(3), 1995),
and where it is itself inexact near zero, products of bf16, the bits that it drops lie too low to make a tie.

Not modelled: ``.oob`` of fma, whose special NaN the ISA does not define.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import floats
from gpulinear.emulator.conversions import flush_half, narrow, relu, to_float
from gpulinear.emulator.isa import Factory, Form, Semantics, elementwise
from gpulinear.emulator.packed import pairwise
from gpulinear.emulator.rounding import to_odd, two_sum

Array = npt.NDArray[Any]


def _half(function: Callable[..., Array], form: Form) -> Semantics:
    """A function of float32 values on registers of a half type: widened, flushed, clamped, rounded once."""
    kind = form["T"].removesuffix("x2")
    ftz, sat, clamp = bool(form.get("ftz")), bool(form.get("sat")), bool(form.get("relu"))

    def scalar(*bits: Array) -> Array:
        if ftz:
            bits = tuple(flush_half(b, kind) for b in bits)
        x = function(*[to_float(b, kind) for b in bits])
        if sat:
            x = floats.saturate(x)
        if clamp:
            x = relu(x)
        r = narrow(x, kind)
        return flush_half(r, kind) if ftz else r

    return pairwise(scalar) if form["T"].endswith("x2") else scalar


def _fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c in float64, rounded to odd: the product of two halves is exact there."""
    p, wide = a.astype(np.float64) * b, c.astype(np.float64)
    s = p + wide
    return to_odd(s, two_sum(p, wide, s))


@elementwise("add[.rn][.ftz][.sat].<T:f16|f16x2>", "=T, T, T", "9.7.4.1")
@elementwise("add[.rn].<T:bf16|bf16x2>", "=T, T, T", "9.7.4.1")
def add(form: Form) -> Semantics:
    return _half(lambda a, b: a + b, form)


@elementwise("sub[.rn][.ftz][.sat].<T:f16|f16x2>", "=T, T, T", "9.7.4.2")
@elementwise("sub[.rn].<T:bf16|bf16x2>", "=T, T, T", "9.7.4.2")
def sub(form: Form) -> Semantics:
    return _half(lambda a, b: a - b, form)


@elementwise("mul[.rn][.ftz][.sat].<T:f16|f16x2>", "=T, T, T", "9.7.4.3")
@elementwise("mul[.rn].<T:bf16|bf16x2>", "=T, T, T", "9.7.4.3")
def mul(form: Form) -> Semantics:
    return _half(lambda a, b: a * b, form)


@elementwise("fma.rn[.ftz][.sat].<T:f16|f16x2>", "=T, T, T, T", "9.7.4.4")
@elementwise("fma.rn[.ftz][.relu].<T:f16|f16x2>", "=T, T, T, T", "9.7.4.4")
@elementwise("fma.rn[.relu].<T:bf16|bf16x2>", "=T, T, T, T", "9.7.4.4")
def fma(form: Form) -> Semantics:
    return _half(_fma, form)


@elementwise("neg[.ftz].<T:f16|f16x2>", "=T, T", "9.7.4.5")
@elementwise("neg.<T:bf16|bf16x2>", "=T, T", "9.7.4.5")
def neg(form: Form) -> Semantics:
    return _half(lambda a: -a, form)


@elementwise("abs[.ftz].<T:f16|f16x2>", "=T, T", "9.7.4.6")
@elementwise("abs.<T:bf16|bf16x2>", "=T, T", "9.7.4.6")
def absolute(form: Form) -> Semantics:
    return _half(np.abs, form)


def _extreme(function: Callable[..., Array], form: Form) -> Semantics:
    nan, xorsign = bool(form["NaN"]), bool(form["xorsign"])
    return _half(lambda a, b: function(a, b, False, nan, xorsign), form)


@elementwise("min[.ftz][.NaN][.<xorsign:xorsign.abs>].<T:f16|f16x2>", "=T, T, T", "9.7.4.7")
@elementwise("min[.NaN][.<xorsign:xorsign.abs>].<T:bf16|bf16x2>", "=T, T, T", "9.7.4.7")
def minimum(form: Form) -> Semantics:
    return _extreme(floats.minimum, form)


@elementwise("max[.ftz][.NaN][.<xorsign:xorsign.abs>].<T:f16|f16x2>", "=T, T, T", "9.7.4.8")
@elementwise("max[.NaN][.<xorsign:xorsign.abs>].<T:bf16|bf16x2>", "=T, T, T", "9.7.4.8")
def maximum(form: Form) -> Semantics:
    return _extreme(floats.maximum, form)


def _approximate(name: str) -> Factory:
    return lambda form: _half(lambda a: floats.approx(name, a.astype(np.float64)), form)


elementwise("tanh.approx.<T:f16|f16x2|bf16|bf16x2>", "=T, T", "9.7.4.9")(_approximate("tanh"))
elementwise("ex2.approx.<T:f16|f16x2>", "=T, T", "9.7.4.10")(_approximate("ex2"))
elementwise("ex2.approx.<ftz:ftz>.<T:bf16|bf16x2>", "=T, T", "9.7.4.10")(_approximate("ex2"))
