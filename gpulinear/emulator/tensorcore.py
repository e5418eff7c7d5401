"""What a tensor core computes, bit for bit, as far as published studies tell; and in float64.

One *step* takes an accumulator and ``p`` products. Products are exact. All addends are aligned to
the largest exponent among them, truncated toward zero at ``F`` fractional bits below it, and summed
exactly; the sum is rounded toward zero to float32, or to nearest even to float16. A matrix
instruction whose K is larger than p runs several steps, K ascending. An exponent is that of the
operands' fields: a product's is the sum of both, not normalised again, and a subnormal has the
smallest normal exponent of its type. A zero does not take part.

Everything is done in float64, where it is exact: a product has at most 22 bits, scaling is by powers
of two, and after the truncation all addends are integers below 2^(F + 2), of which there are few.

Sources: M. Fasi et al., "Numerical behavior of NVIDIA tensor cores", PeerJ CS 2021 (cs-330), and
"MMA-Sim", arXiv 2511.10909, for p, F and the float16 result. Nothing here has been compared with
hardware by this project: see ``status``. NaN results are 0x7FFFFFFF (0x7FFF in float16).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpulinear.emulator import floats

Array = npt.NDArray[Any]


class Step(NamedTuple):
    """How one hardware step adds: its number of products, and the fraction bits that it keeps."""

    products: int
    fraction_bits: int


_TURING = {"f16": Step(8, 24)}
_AMPERE = {"f16": Step(8, 24), "bf16": Step(8, 24), "tf32": Step(4, 24)}
_HOPPER = {"f16": Step(16, 25), "bf16": Step(16, 25), "tf32": Step(8, 25)}
STEPS: dict[int, dict[str, Step]] = {
    75: _TURING,
    80: _AMPERE,
    86: _AMPERE,
    89: _AMPERE,
    90: _HOPPER,
    100: _HOPPER,
    120: _HOPPER,
}
"""By compute capability (major * 10 + minor) and operand type."""

UNCONFIRMED = "not yet confirmed on hardware"
_SOURCE = "arXiv 2511.10909 (MMA-Sim); PeerJ CS cs-330 for truncation and alignment"

_NAN: dict[np.dtype[Any], Any] = {np.dtype(np.float32): floats.NAN32, np.dtype(np.float16): floats.NAN16}
_SMALLEST = {"f16": -14, "bf16": -126, "tf32": -126}  # the exponent of the smallest normal number
_NONE = -10_000  # the exponent of a zero: it never is the largest unless all addends are zeros
_FLOOR = -300  # below the exponent of any product, within float64


def capability(arch: str) -> int:
    """``"sm_90a"`` to 90; an architecture without a table is an error that lists the known ones."""
    number = int("".join(c for c in arch if c.isdigit()) or 0)
    if number not in STEPS:
        known = ", ".join(f"sm_{n}" for n in STEPS)
        raise ValueError(f"no tensor-core model for {arch!r}; there is one for {known}")
    return number


def step_of(kind: str, arch: str) -> Step:
    """The step of operand type ``f16``, ``bf16`` or ``tf32`` on an architecture."""
    steps = STEPS[capability(arch)]
    if kind not in steps:
        raise ValueError(f"{arch} has no tensor-core {kind}; it has {', '.join(steps)}")
    return steps[kind]


def status(form: str, arch: str) -> str:
    """The source and the standing of a form such as ``"wgmma.bf16"`` or ``"mma.f64"``."""
    kind = form.rsplit(".", 1)[-1]
    if kind == "f64":
        capability(arch)
        return f"sequential IEEE fma in float64, K ascending: {UNCONFIRMED}"
    step = step_of(kind, arch)
    return f"p={step.products}, F={step.fraction_bits}, from {_SOURCE}: {UNCONFIRMED}"


def _singles(bits: Array, kind: str) -> Array:
    """Operand bit patterns (uint16, or uint32 for tf32) as float32, which holds them exactly."""
    raw: Array = np.ascontiguousarray(bits)
    if kind == "f16":
        return raw.astype(np.uint16, copy=False).view(np.float16).astype(np.float32)
    if kind == "bf16":
        wide: Array = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return wide
    # A tensor core ignores the 13 low bits of its tf32 operands (PTX ISA 9.7.15.5.2).
    cut: Array = (raw.astype(np.uint32, copy=False) & np.uint32(0xFFFFE000)).view(np.float32)
    return cut


def values(bits: Array, kind: str) -> Array:
    """Operand bit patterns (uint16, or uint32 for tf32) as float64; tf32 is truncated."""
    with np.errstate(all="ignore"):  # signalling NaN
        return _singles(bits, kind).astype(np.float64)


class _Parts(NamedTuple):
    """A matrix: its values in float64, the exponents of its fields, and what bounds them."""

    value: Array
    exponent: Array  # int16; ``_NONE`` for a zero
    largest: int  # of the exponents
    lowest_bit: float  # every value is a multiple of this power of two; infinity if all are zeros


def _exponents(x: Array, smallest: int) -> Array:
    """The exponents of float32 numbers that hold values of a type with this smallest exponent."""
    field = ((x.view(np.uint32) >> np.uint32(23)) & np.uint32(255)).astype(np.int16)
    exponent: Array = np.maximum(field - np.int16(127), np.int16(smallest))
    np.copyto(exponent, np.int16(_NONE), where=x == 0)
    return exponent


def _lowest_bit(value: Array) -> float:
    """The largest power of two that divides all values."""
    size = np.abs(value)
    bits = size.view(np.int64)
    rest = (bits & (bits - 1)).view(np.float64)  # without its lowest bit, if the fraction has any
    size -= np.where(bits & ((1 << 52) - 1), rest, 0.0)
    np.copyto(size, np.inf, where=size == 0)
    return float(size.min(initial=np.inf))


def _take_apart(x: Array, kind: str) -> _Parts:
    exponent = _exponents(x, _SMALLEST[kind])
    value = x.astype(np.float64)
    return _Parts(value, exponent, int(exponent.max(initial=_NONE)), _lowest_bit(value))


def _power(exponent: Array) -> Array:
    """2^exponent in float64, for exponents of normal numbers."""
    return ((exponent.astype(np.int64) + 1023) << 52).view(np.float64)


def _nothing_is_cut(c: Array, smallest: int, a: _Parts, b: _Parts, fraction_bits: int) -> bool:
    """Whether all addends are multiples of the coarsest unit that any sum of the call can have.

    It is what small integers are, for which a matrix product in float64 then is exact and fast.
    """
    peak = max(float(c.max(initial=0.0)), -float(c.min(initial=0.0)))
    largest = max(a.largest + b.largest, max(math.frexp(peak)[1] - 1, smallest) if peak else _NONE)
    unit = 2.0 ** (max(largest, _FLOOR) - fraction_bits)
    if a.lowest_bit * b.lowest_bit < unit or math.isinf(peak):
        return False
    counts = c * (1.0 / unit)
    return bool((counts == np.trunc(counts)).all())


def _one_step(c: Array, smallest: int, a: _Parts, b: _Parts, fraction_bits: int) -> Array:
    """The exact sum, in float64, of c[..., M, N] and the aligned products of a[..., M, p], b[..., p, N]."""
    wide = c.astype(np.float64)
    if _nothing_is_cut(wide, smallest, a, b, fraction_bits):
        return a.value @ b.value + wide
    exponents = a.exponent.swapaxes(-1, -2)[..., None] + b.exponent[..., None, :]  # [..., p, M, N]
    largest = np.maximum(exponents.max(axis=-3), _exponents(c.astype(np.float32, copy=False), smallest))
    np.maximum(largest, np.int16(_FLOOR), out=largest)
    # Every addend becomes a count of 2^(largest - fraction_bits).
    scale = _power(fraction_bits - largest)
    counts = a.value.swapaxes(-1, -2)[..., None] * b.value[..., None, :]
    counts *= scale[..., None, :, :]
    np.trunc(counts, out=counts)
    total: Array = np.add.reduce(counts, axis=-3) + np.trunc(wide * scale)
    return total * _power(largest - fraction_bits)


def _round(total: Array, dtype: np.dtype[Any]) -> Array:
    """Float64 sums rounded toward zero to float32, or to nearest even to float16; large ones give infinity."""
    total = total + 0.0  # a sum of zeros is +0
    if dtype == np.float16:
        return total.astype(dtype)
    cut = (total.view(np.int64) & ~((1 << 29) - 1)).view(np.float64)
    tiny = np.abs(total) < 2.0**-126
    if tiny.any():
        cut = np.where(tiny, np.trunc(total * 2.0**149) * 2.0**-149, cut)
    return cut.astype(dtype)


def _specials(c: Array, a: Array, b: Array) -> tuple[tuple[Array, ...], Array]:
    """The indices of the results that are infinite or NaN because an input is, and these (float64)."""
    rows_fine = np.asarray(np.isfinite(a).all(axis=-1))
    cols_fine = np.asarray(np.isfinite(b).all(axis=-2))
    touched = np.nonzero(~(rows_fine[..., :, None] & cols_fine[..., None, :] & np.isfinite(c)))
    batch, row, col = touched[:-2], touched[-2:-1], touched[-1:]
    products = a[batch + row].astype(np.float64) * b.swapaxes(-1, -2)[batch + col]
    return touched, products.sum(axis=-1) + c[touched]  # what is finite does not overflow here


def _without_specials(x: Array) -> Array:
    return np.where(np.isfinite(x), x, x.dtype.type(0))


def _steps(x: Array, y: Array, d: Array, kind: str, step: Step) -> Array:
    """All steps of the finite x[..., M, K], y[..., K, N] and accumulators d."""
    smallest = _SMALLEST["f16" if d.dtype == np.float16 else "tf32"]
    a, b = _take_apart(x, kind), _take_apart(y, kind)
    for k in range(0, x.shape[-1], step.products):
        part = slice(k, k + step.products)
        left = a._replace(value=a.value[..., part], exponent=a.exponent[..., part])
        right = b._replace(value=b.value[..., part, :], exponent=b.exponent[..., part, :])
        # An overflow in an earlier step is an infinity from then on.
        d = _round(_one_step(d, smallest, left, right, step.fraction_bits), d.dtype)
    return d


def multiply_add(a: Array, b: Array, c: Array, kind: str, arch: str, *, exact: bool = False) -> Array:
    """D = A B + C as the tensor core of ``arch`` computes it, for one matrix or a batch of them.

    Args:
        a: bit patterns [..., M, K], uint16 for ``f16`` and ``bf16``, uint32 (float32 bits) for ``tf32``.
        b: bit patterns [..., K, N].
        c: float32 [..., M, N], or float16, which makes the accumulators float16.
        kind: ``"f16"``, ``"bf16"`` or ``"tf32"``.
        arch: such as ``"sm_90a"``.
        exact: a float64 sum rounded once instead of the model: for tests of anything but bits.

    Returns:
        [..., M, N] of the type of c.
    """
    dtype = np.dtype(np.float16) if np.asarray(c).dtype == np.float16 else np.dtype(np.float32)
    c = np.ascontiguousarray(c, dtype)
    with np.errstate(all="ignore"):
        x, y = _singles(a, kind), _singles(b, kind)
        special = not all(np.isfinite(m).all() for m in (x, y, c))
        if special:
            where, answer = _specials(c, x, y)
            x, y, c = _without_specials(x), _without_specials(y), _without_specials(c)
        d = (x.astype(np.float64) @ y + c).astype(dtype) if exact else _steps(x, y, c, kind, step_of(kind, arch))
        if special:
            d[where] = np.where(np.isnan(answer), _NAN[dtype], answer.astype(dtype))
    return d


def multiply_add_f64(a: Array, b: Array, c: Array) -> Array:
    """D = A B + C in float64: a chain of IEEE fma, K ascending (PTX ISA 9.7.14.5.14; the order is not documented)."""
    d: Array = np.ascontiguousarray(c, np.float64)
    with np.errstate(all="ignore"):
        for k in range(a.shape[-1]):
            d = floats.fma(a[..., :, k, None], b[..., None, k, :], d)
    return d
