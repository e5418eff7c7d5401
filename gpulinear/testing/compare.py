"""Comparisons that say where two arrays differ, past which no NaN, shape or dtype can slip."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from ..reference import Array, Float64, round_to

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Worst:
    """The element with the largest ratio of error to bound; `index` is () for an empty array."""

    index: tuple[int, ...]
    got: float
    exact: float
    bound: float
    ratio: float

    def __str__(self) -> str:
        return f"ratio {self.ratio:.4g} at {self.index}: got {self.got!r}, exact {self.exact!r}, bound {self.bound:.4g}"


def error_ratio(got: Array, exact64: Float64, bound64: Float64, *, dtype: DTypeLike | None = None) -> float:
    """max |got - exact| / bound; at most 1 where `got` is right, `inf` where it can not be.

    `inf` for: another shape, another dtype than `dtype` (if given) or than a supported one, a NaN
    in one array only, an Inf that neither is exact nor comes from rounding a value within the
    bound, a bound that is not finite where the exact value is.
    """
    if _mismatch(got, exact64, bound64, dtype) is not None:
        return math.inf
    return float(np.max(_ratios(got, exact64, bound64), initial=0.0))


def worst(got: Array, exact64: Float64, bound64: Float64) -> Worst:
    """The worst element of arrays of equal shape, for messages."""
    if got.size == 0:
        return Worst((), 0.0, 0.0, 0.0, 0.0)
    ratios = _ratios(got, exact64, bound64)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(ratios)), got.shape))
    values = (float(array[index]) for array in (got, exact64, bound64, ratios))
    return Worst(index, *values)


def assert_within(
    got: Array,
    exact64: Float64,
    bound64: Float64,
    *,
    dtype: DTypeLike | None = None,
    what: str = "result",
) -> None:
    """AssertionError with the worst coordinate unless `error_ratio` is at most 1."""
    mismatch = _mismatch(got, exact64, bound64, dtype)
    if mismatch is not None:
        raise AssertionError(f"{what}: {mismatch}")
    found = worst(got, exact64, bound64)
    if not found.ratio <= 1.0:
        bad = int(np.count_nonzero(~(_ratios(got, exact64, bound64) <= 1.0)))
        raise AssertionError(f"{what}: {bad} of {got.size} elements out of bounds; {found}")


def assert_same_bits(got: Array, want: Array, *, what: str = "result") -> None:
    """AssertionError with the first differing coordinate and both bit patterns, unless all agree.

    -0 differs from +0, and NaNs must have the same payload.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        raise AssertionError(f"{what}: {got.dtype.name} {got.shape} is not {want.dtype.name} {want.shape}")
    differ = _bits(got) != _bits(want)
    if not differ.any():
        return
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(differ)), differ.shape))
    raise AssertionError(
        f"{what}: {int(differ.sum())} of {differ.size} elements differ, first at {index}: "
        f"got {bit_pattern(got[index])} = {float(got[index])!r}, "
        f"want {bit_pattern(want[index])} = {float(want[index])!r}"
    )


def bit_pattern(value: Array) -> str:
    """One element as hexadecimal digits of its width."""
    array = np.asarray(value)
    return f"0x{int(_bits(array)):0{2 * array.dtype.itemsize}x}"


def _bits(array: Array) -> Array:
    return array.view(_UNSIGNED[array.dtype.itemsize])


def _mismatch(got: Array, exact64: Float64, bound64: Float64, dtype: DTypeLike | None) -> str | None:
    if got.dtype.name not in _FLOATS:
        return f"dtype {got.dtype.name} is none of {_FLOATS}"
    wanted = dtype if dtype is None or isinstance(dtype, str) else np.dtype(dtype).name
    if wanted is not None and got.dtype.name != wanted:
        return f"dtype is {got.dtype.name}, expected {wanted}"
    if not got.shape == exact64.shape == bound64.shape:
        return f"shape is {got.shape}, exact {exact64.shape}, bound {bound64.shape}"
    return None


@np.errstate(all="ignore")
def _ratios(got: Array, exact: Float64, bound: Float64) -> Float64:
    g = got.astype(np.float64)
    error = np.abs(g - exact)
    ratio = np.where(error == 0.0, 0.0, error / bound)
    ratio = np.where((bound >= 0.0) & np.isfinite(bound), ratio, np.inf)
    # An overflow is right where a value within the bound rounds to it.
    overflow = round_to(exact + np.copysign(bound, g), got.dtype).astype(np.float64) == g
    right = (g == exact) | (np.isfinite(exact) & np.isfinite(bound) & overflow)
    ratio = np.where(np.isinf(g) | np.isinf(exact), np.where(right, 0.0, np.inf), ratio)
    nan = np.isnan(g) | np.isnan(exact)
    both = np.isnan(g) & np.isnan(exact)
    return np.where(nan, np.where(both, 0.0, np.inf), ratio)
