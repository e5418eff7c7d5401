"""IEEE floating point as PTX defines it: arithmetic, min, max and the approximate functions.

Arrays of float16, float32 or float64 of any (broadcastable) shape go in and arrays come out; every
function rounds once, in the modes ``rn``, ``rz``, ``rm`` and ``rp``. PTX ISA 9.7.3 (floating point)
and 9.7.4 (half precision); 6.5.2 for the rounding modifiers.

How a single rounding is reached: an exact float32 product fits a float64, and a float64 sum that
was not exact is rounded to odd first (``rounding.py``). float64 uses error-free transformations
and falls back to fractions near the ends of the range.

NaN results are canonical: 0x7FFF, 0x7FFFFFFF, and 0x7FF8000000000000 for float64, where the ISA
leaves the payload open. The caller holds ``np.errstate(all="ignore")``: entering it here would cost
more than a fast operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpulinear.emulator.rounding import (
    F16,
    F32,
    Array,
    divide_one,
    each,
    fma_one,
    odd_add,
    odd_divide,
    odd_sqrt,
    round_to,
    sqrt_one,
    to_odd,
    two_product,
    two_sum,
)

ROUNDINGS = ("rn", "rz", "rm", "rp")

NAN16 = np.uint16(0x7FFF).view(np.float16)
NAN32 = np.uint32(0x7FFFFFFF).view(np.float32)
NAN64 = np.uint64(0x7FF8000000000000).view(np.float64)
_NAN: dict[str, np.floating[Any]] = {"float16": NAN16, "float32": NAN32, "float64": NAN64}


def flush(x: Array) -> Array:
    """``.ftz``: float32 (or float16) subnormals become zeros of the same sign."""
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def canonical(x: Array) -> Array:
    """Replace every NaN by the canonical one of its type."""
    nan = x != x
    if np.count_nonzero(nan):
        return np.where(nan, _NAN[x.dtype.name], x)
    return x


def saturate(x: Array) -> Array:
    """``.sat``: clamp to [0, 1]; NaN becomes +0, and so does -0 (PTX ISA 9.7.3.3)."""
    one = x.dtype.type(1)
    clamped: Array = np.where(x > 0, np.minimum(x, one), x.dtype.type(0))
    return clamped


def _finish(r: Array, ftz: bool, sat: bool) -> Array:
    if ftz:
        r = flush(r)
    return saturate(r) if sat else canonical(r)


def _narrow(x: Array, dtype: np.dtype[Any], rnd: str) -> Array:
    """Round float64 values (exact or rounded to odd) to a float16 or float32 array."""
    if rnd == "rn":
        return np.asarray(x).astype(dtype)
    return round_to(x, F32 if dtype == np.float32 else F16, rnd).astype(dtype)


def _minus_zero(s: Array, a: Array, b: Array, rnd: str) -> Array:
    """Rounding down, a sum that is exactly zero is -0 unless both addends are +0 (IEEE 754 6.3)."""
    if rnd != "rm":
        return s
    return np.where((s == 0) & (np.signbit(a) | np.signbit(b)), -0.0, s)


def _fma64_odd(a: Array, b: Array, c: Array) -> Array:
    """fma.rn.f64 of flat arrays: Boldo and Melquiond's algorithm inside the safe range, fractions outside it."""
    p, low = two_product(a, b)
    th = c + low
    tl = two_sum(c, low, th)
    vh = p + th
    r: Array = vh + odd_add(tl, two_sum(p, th, vh))
    size = np.abs(p)
    rare = ~((size > 1e-250) & (size < 1e290) & (np.abs(a) < 1e290) & (np.abs(b) < 1e290) & (np.abs(c) < 1e290))
    if np.count_nonzero(rare):
        r[rare] = each(fma_one, "rn", a[rare], b[rare], c[rare])
    return r


def _fma64(a: Array, b: Array, c: Array, rnd: str) -> Array:
    """fma.f64: p + low is the exact product, s + error the exact p + c.

    If low is zero, s is the answer. Else s + d is, unless the sum lies too close to a tie: d = error + low is exact to
    2^-53 of itself, and if s + d gives the same number with d a little smaller and a little larger, it is the right
    one. Where low may have left the range of float64 at either end, and for infinities and NaN, nothing is sure.
    """
    if rnd != "rn":
        return each(fma_one, rnd, a, b, c)
    p, low = two_product(a, b)
    s = p + c
    d = two_sum(p, c, s) + low
    r = s + d * (1.0 - 2.0**-50)
    exact = low == 0
    sure = (r == s + d * (1.0 + 2.0**-50)) | exact
    r = np.where(exact, s, r)
    size = np.abs(p)
    within = (size > 1e-250) & (size < 1e290)
    if np.count_nonzero(within) < within.size:
        sure &= within | (a == 0) | (b == 0)
    if np.count_nonzero(sure) == sure.size:
        return r
    a, b, c = (v[~sure] for v in np.broadcast_arrays(a, b, c, sure)[:3])
    r[~sure] = _fma64_odd(a, b, c)
    return r


def _round_sum(p: Array, c: Array, s: Array) -> Array:
    """The float32 nearest to the exact p + c, where s is the float64 nearest to it: the hot path of SIMT kernels.

    Rounding s again differs from rounding p + c only if s is a tie, halfway between two neighbours in float32, and
    p + c is not: ties are float64 numbers, so if p + c lies below (above) one, s does not lie above (below) it, and
    what is strictly between two ties rounds to the same number. A tie ends in the 29 bits 1000...0 where float32 is
    normal; below 2^-126 its grid is coarser, and every non-zero sum is suspected. Suspects get the rounding to odd,
    which keeps them off the tie if they were inexact; sums that are exact, such as those of integers, cost nothing.
    """
    suspect = (s.view(np.int64) & 0x1FFFFFFF) == 0x10000000
    tiny = np.abs(s) < 2.0**-126
    if np.count_nonzero(tiny):
        suspect |= tiny & (s != 0)
    r: Array = s.astype(np.float32)
    if np.count_nonzero(suspect):
        r, s = np.array(r), np.asarray(s)
        p, c, s = np.broadcast_to(p, s.shape)[suspect], np.broadcast_to(c, s.shape)[suspect], s[suspect]
        r[suspect] = to_odd(s, two_sum(p, c, s)).astype(np.float32)
    return r


# ------------------------------------------------------------------------------------ arithmetic


def add(a: Array, b: Array, rnd: str = "rn", ftz: bool = False, sat: bool = False) -> Array:
    """``add{.rnd}{.ftz}{.sat}`` (PTX ISA 9.7.3.3)."""
    if ftz:
        a, b = flush(a), flush(b)
    if rnd == "rn":
        return _finish(a + b, ftz, sat)
    if a.dtype == np.float64:
        return canonical(each(fma_one, rnd, np.ones_like(a), a, b))
    wide, other = a.astype(np.float64), b.astype(np.float64)
    s = _minus_zero(odd_add(wide, other), wide, other, rnd)
    return _finish(_narrow(s, a.dtype, rnd), ftz, sat)


def sub(a: Array, b: Array, rnd: str = "rn", ftz: bool = False, sat: bool = False) -> Array:
    """``sub{.rnd}{.ftz}{.sat}`` (PTX ISA 9.7.3.4): a + (-b)."""
    return add(a, -b, rnd, ftz, sat)


def mul(a: Array, b: Array, rnd: str = "rn", ftz: bool = False, sat: bool = False) -> Array:
    """``mul{.rnd}{.ftz}{.sat}`` (PTX ISA 9.7.3.5)."""
    if ftz:
        a, b = flush(a), flush(b)
    if rnd == "rn":
        return _finish(a * b, ftz, sat)
    if a.dtype == np.float64:
        # The addend's sign makes an exact zero keep the sign of the product.
        return canonical(each(fma_one, rnd, a, b, np.copysign(0.0, a) * np.copysign(1.0, b)))
    exact = a.astype(np.float64) * b.astype(np.float64)
    return _finish(_narrow(exact, a.dtype, rnd), ftz, sat)


def fma(a: Array, b: Array, c: Array, rnd: str = "rn", ftz: bool = False, sat: bool = False) -> Array:
    """``fma.rnd{.ftz}{.sat}`` (PTX ISA 9.7.3.6): a * b + c with one rounding."""
    if a.dtype == np.float64:
        r = _fma64(a, b, c, rnd)
        return saturate(r) if sat else canonical(r)
    if ftz:
        a, b, c = flush(a), flush(b), flush(c)
    p = a.astype(np.float64) * b
    c64 = c.astype(np.float64)
    s = p + c64
    if rnd == "rn" and a.dtype == np.float32:
        return _finish(_round_sum(p, c64, s), ftz, sat)
    s = _minus_zero(to_odd(s, two_sum(p, c64, s)), p, c64, rnd)
    return _finish(_narrow(s, a.dtype, rnd), ftz, sat)


def div(a: Array, b: Array, rnd: str = "rn", ftz: bool = False) -> Array:
    """``div.rnd{.ftz}`` (PTX ISA 9.7.3.8), correctly rounded."""
    if ftz:
        a, b = flush(a), flush(b)
    if rnd == "rn":
        return _finish(a / b, ftz, False)
    if a.dtype == np.float64:
        return canonical(each(divide_one, rnd, a, b))
    q = odd_divide(a.astype(np.float64), b.astype(np.float64))
    return _finish(_narrow(q, a.dtype, rnd), ftz, False)


def rcp(a: Array, rnd: str = "rn", ftz: bool = False) -> Array:
    """``rcp.rnd{.ftz}`` (PTX ISA 9.7.3.13), correctly rounded."""
    return div(np.ones_like(a), a, rnd, ftz)


def sqrt(a: Array, rnd: str = "rn", ftz: bool = False) -> Array:
    """``sqrt.rnd{.ftz}`` (PTX ISA 9.7.3.15), correctly rounded."""
    if ftz:
        a = flush(a)
    if rnd == "rn":
        return _finish(np.sqrt(a), ftz, False)
    if a.dtype == np.float64:
        return canonical(each(sqrt_one, rnd, a))
    return _finish(_narrow(odd_sqrt(a.astype(np.float64)), a.dtype, rnd), ftz, False)


def _extreme(choose_a: Array, a: Array, b: Array, ftz: bool, nan: bool, xorsign_abs: bool, sign: Array) -> Array:
    r = np.where(choose_a, a, b)
    a_nan, b_nan = a != a, b != b
    r = np.where(a_nan, b, np.where(b_nan, a, r))
    if xorsign_abs:
        r = np.where(r == r, np.where(sign, -r, r), r)
    if nan:
        r = np.where(a_nan | b_nan, _NAN[a.dtype.name], r)
    return _finish(r, ftz, False)


def minimum(a: Array, b: Array, ftz: bool = False, nan: bool = False, xorsign_abs: bool = False) -> Array:
    """``min{.ftz}{.NaN}{.xorsign.abs}`` (PTX ISA 9.7.3.11): NaN loses unless ``.NaN``."""
    if ftz:
        a, b = flush(a), flush(b)
    sign = np.signbit(a) ^ np.signbit(b)
    if xorsign_abs:
        a, b = np.abs(a), np.abs(b)
    choose = (a < b) | ((a == b) & np.signbit(a))
    return _extreme(choose, a, b, ftz, nan, xorsign_abs, sign)


def maximum(a: Array, b: Array, ftz: bool = False, nan: bool = False, xorsign_abs: bool = False) -> Array:
    """``max{.ftz}{.NaN}{.xorsign.abs}`` (PTX ISA 9.7.3.12): NaN loses unless ``.NaN``."""
    if ftz:
        a, b = flush(a), flush(b)
    sign = np.signbit(a) ^ np.signbit(b)
    if xorsign_abs:
        a, b = np.abs(a), np.abs(b)
    choose = (a > b) | ((a == b) & ~np.signbit(a))
    return _extreme(choose, a, b, ftz, nan, xorsign_abs, sign)


# ------------------------------------------------------------------------ approximate functions

# What PTX allows the hardware (PTX ISA 9.7.3.8 and 9.7.3.13 to 9.7.3.22). The functions below
# compute in float64 and round once, inside every bound: hardware may differ by as much.
APPROX_BOUNDS = {
    "rcp": "1 ulp",
    "sqrt": "relative error 2^-23",
    "rsqrt": "relative error 2^-22.9",
    "sin": "absolute error 2^-20.5 for |x| <= 2 pi",
    "cos": "absolute error 2^-20.5 for |x| <= 2 pi",
    "lg2": "absolute error 2^-22 for 0.5 < x < 2, relative error 2^-22 elsewhere",
    "ex2": "2 ulp and 2^-22 relative",
    "tanh": "relative error 2^-11",
    "div": "2 ulp for 2^-126 <= |b| <= 2^126",
}

_APPROX: dict[str, Callable[[Array], Array]] = {
    "rcp": lambda x: 1.0 / x,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "lg2": np.log2,
    "ex2": np.exp2,
    "tanh": np.tanh,
}


def approx(name: str, x: Array, ftz: bool = False) -> Array:
    """``name.approx{.ftz}`` for a name in ``APPROX_BOUNDS`` but div, on floating point arrays."""
    if ftz:
        x = flush(x)
    wide = _APPROX[name](x.astype(np.float64))
    return _finish(np.asarray(wide).astype(x.dtype), ftz, False)


def approx_div(a: Array, b: Array, ftz: bool = False, full: bool = False) -> Array:
    """``div.approx`` or ``div.full`` (PTX ISA 9.7.3.8).

    ``.approx`` multiplies by a reciprocal. For b beyond 2^126 in size that reciprocal is flushed,
    so the quotient is zero, and NaN for infinite a.
    """
    if ftz:
        a, b = flush(a), flush(b)
    r = a / b
    if not full:
        size = np.abs(b)
        lost = (size > np.float32(2.0**126)) & (size < np.float32(np.inf))
        r = np.where(lost, a * np.copysign(np.float32(0), b), r)
    return _finish(r, ftz, False)
