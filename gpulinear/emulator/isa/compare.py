"""Comparison and selection: set, setp, selp, slct (PTX ISA 9.7.6, 9.7.7; the operators are in 9.3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import floats
from gpulinear.emulator.conversions import flush_half, to_float
from gpulinear.emulator.isa import Form, Semantics, elementwise
from gpulinear.emulator.packed import join, split
from gpulinear.emulator.types import DTYPES

Array = npt.NDArray[Any]

_OPERATORS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": lambda a, b: a == b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lo": lambda a, b: a < b,
    "ls": lambda a, b: a <= b,
    "hi": lambda a, b: a > b,
    "hs": lambda a, b: a >= b,
    # Unordered: true if either is NaN, so each is the complement of the opposite ordered one.
    "neu": lambda a, b: a != b,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
    # Ordered: false if either is NaN; of integers, plain inequality.
    "ne": lambda a, b: (a < b) | (a > b),
}

_COMBINE: dict[str, Callable[[Array, Array], Array]] = {
    "and": lambda t, c: t & c,
    "or": lambda t, c: t | c,
    "xor": lambda t, c: t ^ c,
}

_SIGNED = "<cmp:eq|ne|lt|le|gt|ge>"
_UNSIGNED = "<cmp:eq|ne|lt|le|gt|ge|lo|ls|hi|hs>"
_FLOAT = "<cmp:eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan>"
_BOOL = ".<bool:and|or|xor>"

# A class of types, the operators that exist for it, whether .ftz does, and what `set` can give for it.
_OPERANDS = (
    ("<T:s16|s32|s64>", _SIGNED, "", "<D:u32|s32|f32|f16|bf16>"),
    ("<T:u16|u32|u64>", _UNSIGNED, "", "<D:u32|s32|f32|f16|bf16>"),
    ("<T:b16|b32|b64>", "<cmp:eq|ne>", "", "<D:u32|s32|f32|f16|bf16>"),
    ("<T:f32>", _FLOAT, "[.ftz]", "<D:u32|s32|f32|f16|bf16>"),
    ("<T:f64>", _FLOAT, "", "<D:u32|s32|f32|f16|bf16>"),
    ("<T:f16>", _FLOAT, "[.ftz]", "<D:u16|s16|u32|s32|f16|bf16>"),
    ("<T:bf16>", _FLOAT, "", "<D:u16|s16|u32|s32|bf16>"),
)
_PACKED_OPERANDS = (
    ("<T:f16x2>", _FLOAT, "[.ftz]", "<D:f16x2|u32|s32>"),
    ("<T:bf16x2>", _FLOAT, "", "<D:bf16x2|u32|s32>"),
)


def _comparison(form: Form) -> Callable[[Array, Array], Array]:
    """The operator of an instruction on two registers of its type, or on the halves of a packed type."""
    kind, ftz, operator = form["T"].removesuffix("x2"), form.get("ftz"), _OPERATORS[form["cmp"]]
    if kind in ("f16", "bf16"):
        if ftz:
            return lambda a, b: operator(to_float(flush_half(a, kind), kind), to_float(flush_half(b, kind), kind))
        return lambda a, b: operator(to_float(a, kind), to_float(b, kind))
    if ftz:
        return lambda a, b: operator(floats.flush(a), floats.flush(b))
    if form["cmp"] == "ne" and kind not in ("f32", "f64"):
        return lambda a, b: a != b
    return operator


def _setp(form: Form) -> Semantics:
    compare = _comparison(form)
    if not form.get("bool"):
        return compare
    combine = _COMBINE[form["bool"]]
    return lambda a, b, c: combine(compare(a, b), c)


def _setp_both(form: Form) -> Semantics:
    """p|q: q is made from the complement of the comparison, not of p."""
    compare = _comparison(form)

    def plain(a: Array, b: Array) -> tuple[Array, Array]:
        t = compare(a, b)
        return t, ~t

    if not form.get("bool"):
        return plain
    combine = _COMBINE[form["bool"]]

    def combined(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
        t = compare(a, b)
        return combine(t, c), combine(~t, c)

    return combined


def _setp_packed(form: Form) -> Semantics:
    """p|q of a packed type: p is the comparison of the low halves, q that of the high ones."""
    compare = _comparison(form)
    combine = _COMBINE.get(form.get("bool", ""))

    def each(a: Array, b: Array, *c: Array) -> tuple[Array, Array]:
        results = tuple(compare(x, y) for x, y in zip(split(a), split(b), strict=True))
        low, high = results if combine is None else (combine(t, *c) for t in results)
        return low, high

    return each


_ONE: dict[str, Any] = {"f32": np.float32(1), "f16": np.uint16(0x3C00), "bf16": np.uint16(0x3F80)}


def _set(form: Form) -> Semantics:
    """True is 1.0, or all ones in an integer; false is zero."""
    test, dtype = _setp(form), DTYPES[form["D"]]
    one = _ONE.get(form["D"], ~dtype.type(0) if dtype.kind != "f" else None)
    return lambda *operands: np.where(test(*operands), one, dtype.type(0))


def _set_packed(form: Form) -> Semantics:
    test, dtype = _setp_packed(form), DTYPES[form["D"]]
    one = _ONE.get(form["D"].removesuffix("x2"), np.uint16(0xFFFF))

    def each(a: Array, b: Array, *c: Array) -> Array:
        low, high = (np.where(t, one, np.uint16(0)) for t in test(a, b, *c))
        return join(low, high).view(dtype)

    return each


for _types, _cmp, _ftz, _result in _OPERANDS:
    _half = "f16" in _types
    _section = "9.7.7.2" if _half else "9.7.6.2"
    elementwise(f"setp.{_cmp}{_ftz}.{_types}", "=pred, T, T", _section)(_setp)
    elementwise(f"setp.{_cmp}{_BOOL}{_ftz}.{_types}", "=pred, T, T, pred", _section)(_setp)
    if not _half:
        elementwise(f"setp.{_cmp}{_ftz}.{_types}", "=pred|=pred, T, T", _section)(_setp_both)
        elementwise(f"setp.{_cmp}{_BOOL}{_ftz}.{_types}", "=pred|=pred, T, T, pred", _section)(_setp_both)
    _section = "9.7.7.1" if _half else "9.7.6.1"
    elementwise(f"set.{_cmp}{_ftz}.{_result}.{_types}", "=D, T, T", _section)(_set)
    elementwise(f"set.{_cmp}{_BOOL}{_ftz}.{_result}.{_types}", "=D, T, T, pred", _section)(_set)

for _types, _cmp, _ftz, _result in _PACKED_OPERANDS:
    elementwise(f"setp.{_cmp}{_ftz}.{_types}", "=pred|=pred, T, T", "9.7.7.2")(_setp_packed)
    elementwise(f"setp.{_cmp}{_BOOL}{_ftz}.{_types}", "=pred|=pred, T, T, pred", "9.7.7.2")(_setp_packed)
    elementwise(f"set.{_cmp}{_ftz}.{_result}.{_types}", "=D, T, T", "9.7.7.1")(_set_packed)
    elementwise(f"set.{_cmp}{_BOOL}{_ftz}.{_result}.{_types}", "=D, T, T, pred", "9.7.7.1")(_set_packed)


@elementwise("selp.<T:b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64>", "=T, T, T, pred", "9.7.6.3")
def selp(form: Form) -> Semantics:
    return lambda a, b, c: np.where(c, a, b)


@elementwise("slct.<T:b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64>.<C:s32>", "=T, T, T, C", "9.7.6.4")
@elementwise("slct[.ftz].<T:b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64>.<C:f32>", "=T, T, T, C", "9.7.6.4")
def slct(form: Form) -> Semantics:
    """a where c >= 0, and b where c is NaN."""
    if form.get("ftz"):
        return lambda a, b, c: np.where(floats.flush(c) >= 0, a, b)
    return lambda a, b, c: np.where(c >= 0, a, b)
