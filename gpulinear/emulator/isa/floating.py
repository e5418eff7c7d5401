"""Floating point arithmetic on f32, f64 and f32x2 (PTX ISA 9.7.3), and mixed precision (9.7.5).

NaN results are canonical (0x7FFFFFFF for f32): the ISA leaves the payload open, also of neg and abs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import floats
from gpulinear.emulator.conversions import to_float
from gpulinear.emulator.isa import Factory, Form, Semantics, elementwise
from gpulinear.emulator.packed import pairwise

Array = npt.NDArray[Any]

_RND = "<rnd:rn|rz|rm|rp>"


def _rounded(function: Callable[..., Array], form: Form) -> Semantics:
    """A function of floats.py with the modifiers of an instruction, on both halves of a register for f32x2."""
    options: dict[str, Any] = {"rnd": form.get("rnd") or "rn", "ftz": bool(form.get("ftz"))}
    if "sat" in form:
        options["sat"] = bool(form["sat"])
    if form.get("T") != "f32x2":
        return lambda *x: function(*x, **options)
    return pairwise(lambda *x: function(*[v.view(np.float32) for v in x], **options).view(np.uint32), 32)


@elementwise(f"add[.{_RND}][.ftz][.sat].f32", "=f32, f32, f32", "9.7.3.3")
@elementwise(f"add[.{_RND}][.ftz].<T:f32x2>", "=T, T, T", "9.7.3.3")
@elementwise(f"add[.{_RND}].f64", "=f64, f64, f64", "9.7.3.3")
def add(form: Form) -> Semantics:
    return _rounded(floats.add, form)


@elementwise(f"sub[.{_RND}][.ftz][.sat].f32", "=f32, f32, f32", "9.7.3.4")
@elementwise(f"sub[.{_RND}][.ftz].<T:f32x2>", "=T, T, T", "9.7.3.4")
@elementwise(f"sub[.{_RND}].f64", "=f64, f64, f64", "9.7.3.4")
def sub(form: Form) -> Semantics:
    return _rounded(floats.sub, form)


@elementwise(f"mul[.{_RND}][.ftz][.sat].f32", "=f32, f32, f32", "9.7.3.5")
@elementwise(f"mul[.{_RND}][.ftz].<T:f32x2>", "=T, T, T", "9.7.3.5")
@elementwise(f"mul[.{_RND}].f64", "=f64, f64, f64", "9.7.3.5")
def mul(form: Form) -> Semantics:
    return _rounded(floats.mul, form)


@elementwise(f"fma.{_RND}[.ftz][.sat].f32", "=f32, f32, f32, f32", "9.7.3.6")
@elementwise(f"fma.{_RND}[.ftz].<T:f32x2>", "=T, T, T, T", "9.7.3.6")
@elementwise(f"fma.{_RND}.f64", "=f64, f64, f64, f64", "9.7.3.6")
@elementwise(f"mad.{_RND}[.ftz][.sat].f32", "=f32, f32, f32, f32", "9.7.3.7")
@elementwise(f"mad.{_RND}.f64", "=f64, f64, f64, f64", "9.7.3.7")
def fma(form: Form) -> Semantics:
    return _rounded(floats.fma, form)


@elementwise(f"add[.{_RND}][.sat].f32.<A:f16|bf16>", "=f32, A, f32", "9.7.5.1")
def add_mixed(form: Form) -> Semantics:
    function = _rounded(floats.add, form)
    return lambda a, c: function(to_float(a, form["A"]), c)


@elementwise(f"sub[.{_RND}][.sat].f32.<A:f16|bf16>", "=f32, A, f32", "9.7.5.2")
def sub_mixed(form: Form) -> Semantics:
    function = _rounded(floats.sub, form)
    return lambda a, c: function(to_float(a, form["A"]), c)


@elementwise(f"fma.{_RND}[.sat].f32.<A:f16|bf16>", "=f32, A, A, f32", "9.7.5.3")
def fma_mixed(form: Form) -> Semantics:
    function = _rounded(floats.fma, form)
    return lambda a, b, c: function(to_float(a, form["A"]), to_float(b, form["A"]), c)


# ------------------------------------------------------------------- quotients, roots, functions


@elementwise(f"div.{_RND}[.ftz].f32", "=f32, f32, f32", "9.7.3.8")
@elementwise(f"div.{_RND}.f64", "=f64, f64, f64", "9.7.3.8")
def div(form: Form) -> Semantics:
    return _rounded(floats.div, form)


@elementwise("div.<mode:approx|full>[.ftz].f32", "=f32, f32, f32", "9.7.3.8")
def div_approx(form: Form) -> Semantics:
    ftz, full = bool(form["ftz"]), form["mode"] == "full"
    return lambda a, b: floats.approx_div(a, b, ftz, full)


@elementwise(f"rcp.{_RND}[.ftz].f32", "=f32, f32", "9.7.3.13")
@elementwise(f"rcp.{_RND}.f64", "=f64, f64", "9.7.3.13")
def rcp(form: Form) -> Semantics:
    return _rounded(floats.rcp, form)


@elementwise(f"sqrt.{_RND}[.ftz].f32", "=f32, f32", "9.7.3.15")
@elementwise(f"sqrt.{_RND}.f64", "=f64, f64", "9.7.3.15")
def sqrt(form: Form) -> Semantics:
    return _rounded(floats.sqrt, form)


def _approximate(name: str) -> Factory:
    """The factory of an approximate function, which floats.py rounds once where hardware may differ by a bound."""

    def factory(form: Form) -> Semantics:
        ftz = bool(form.get("ftz"))
        return lambda a: floats.approx(name, a, ftz)

    return factory


elementwise("rcp.approx[.ftz].f32", "=f32, f32", "9.7.3.13")(_approximate("rcp"))
elementwise("sqrt.approx[.ftz].f32", "=f32, f32", "9.7.3.15")(_approximate("sqrt"))
elementwise("rsqrt.approx[.ftz].f32", "=f32, f32", "9.7.3.16")(_approximate("rsqrt"))
elementwise("rsqrt.approx.f64", "=f64, f64", "9.7.3.16")(_approximate("rsqrt"))
elementwise("sin.approx[.ftz].f32", "=f32, f32", "9.7.3.18")(_approximate("sin"))
elementwise("cos.approx[.ftz].f32", "=f32, f32", "9.7.3.19")(_approximate("cos"))
elementwise("lg2.approx[.ftz].f32", "=f32, f32", "9.7.3.20")(_approximate("lg2"))
elementwise("ex2.approx[.ftz].f32", "=f32, f32", "9.7.3.21")(_approximate("ex2"))
elementwise("tanh.approx.f32", "=f32, f32", "9.7.3.22")(_approximate("tanh"))


_UPPER_WORD = np.uint64(0xFFFFFFFF00000000)


def _gross(name: str) -> Factory:
    """The factory of a function of the upper word of f64 alone, its result cut to the upper word."""

    def function(a: Array) -> Array:
        x = floats.flush((a.view(np.uint64) & _UPPER_WORD).view(np.float64))
        r = floats.flush((floats.approx(name, x).view(np.uint64) & _UPPER_WORD).view(np.float64))
        return np.where((a != a) | (r != r), np.uint64(0x7FFFFFFF00000000), r.view(np.uint64)).view(np.float64)

    return lambda form: function


elementwise("rcp.approx.ftz.f64", "=f64, f64", "9.7.3.14")(_gross("rcp"))
elementwise("rsqrt.approx.ftz.f64", "=f64, f64", "9.7.3.17")(_gross("rsqrt"))


# ------------------------------------------------------------------------- signs, order, classes


@elementwise("neg[.ftz].f32", "=f32, f32", "9.7.3.10")
@elementwise("neg.f64", "=f64, f64", "9.7.3.10")
def neg(form: Form) -> Semantics:
    if form.get("ftz"):
        return lambda a: floats.canonical(floats.flush(-a))
    return lambda a: floats.canonical(-a)


@elementwise("abs[.ftz].f32", "=f32, f32", "9.7.3.9")
def abs_f32(form: Form) -> Semantics:
    if form["ftz"]:
        return lambda a: floats.canonical(floats.flush(np.abs(a)))
    return lambda a: floats.canonical(np.abs(a))


@elementwise("abs.f64", "=f64, f64", "9.7.3.9")
def abs_f64(form: Form) -> Semantics:
    """NaN passes unchanged, its sign too."""
    return lambda a: np.where(a == a, np.abs(a), a)


@elementwise("copysign.<T:f32|f64>", "=T, T, T", "9.7.3.2")
def copysign(form: Form) -> Semantics:
    return lambda a, b: np.copysign(b, a)


def _extreme(function: Callable[..., Array], form: Form) -> Semantics:
    ftz, nan, xorsign = bool(form.get("ftz")), bool(form.get("NaN")), bool(form.get("xorsign"))
    return lambda a, b: function(a, b, ftz, nan, xorsign)


def _extreme_of_three(function: Callable[..., Array], form: Form) -> Semantics:
    ftz, nan = bool(form["ftz"]), bool(form["NaN"])
    if form["abs"]:
        return lambda a, b, c: function(function(np.abs(a), np.abs(b), ftz, nan), np.abs(c), ftz, nan)
    return lambda a, b, c: function(function(a, b, ftz, nan), c, ftz, nan)


@elementwise("min[.ftz][.NaN][.<xorsign:xorsign.abs>].f32", "=f32, f32, f32", "9.7.3.11")
@elementwise("min.f64", "=f64, f64, f64", "9.7.3.11")
def minimum(form: Form) -> Semantics:
    return _extreme(floats.minimum, form)


@elementwise("min[.ftz][.NaN][.abs].f32", "=f32, f32, f32, f32", "9.7.3.11")
def minimum_of_three(form: Form) -> Semantics:
    return _extreme_of_three(floats.minimum, form)


@elementwise("max[.ftz][.NaN][.<xorsign:xorsign.abs>].f32", "=f32, f32, f32", "9.7.3.12")
@elementwise("max.f64", "=f64, f64, f64", "9.7.3.12")
def maximum(form: Form) -> Semantics:
    return _extreme(floats.maximum, form)


@elementwise("max[.ftz][.NaN][.abs].f32", "=f32, f32, f32, f32", "9.7.3.12")
def maximum_of_three(form: Form) -> Semantics:
    return _extreme_of_three(floats.maximum, form)


_CLASSES: dict[str, Callable[[Array], Array]] = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda a: a == a,
    "notanumber": lambda a: a != a,
    "normal": lambda a: np.isfinite(a) & ((np.abs(a) >= np.finfo(a.dtype).tiny) | (a == 0)),
    "subnormal": lambda a: (np.abs(a) < np.finfo(a.dtype).tiny) & (a != 0),
}


@elementwise(f"testp.<op:{'|'.join(_CLASSES)}>.<T:f32|f64>", "=pred, T", "9.7.3.1")
def testp(form: Form) -> Semantics:
    return _CLASSES[form["op"]]
