"""What a tensor core computes, bit for bit, as far as published studies tell; and in float64.

One *step* takes an accumulator and ``p`` products. Products are exact. All addends are aligned to
the largest exponent among them, truncated toward zero at ``F`` fractional bits below it, summed as
integers, and the sum is rounded toward zero to float32. A matrix instruction whose K is larger than
p runs several steps, K ascending. An exponent is that of the operands' fields: a product's is the
sum of both, not normalised again, and a subnormal has the smallest normal exponent.

Sources: M. Fasi et al., "Numerical behavior of NVIDIA tensor cores", PeerJ CS 2021 (cs-330), and
"MMA-Sim", arXiv 2511.10909, for p and F by architecture. Nothing here has been compared with
hardware by this project: see ``status``. NaN results are 0x7FFFFFFF.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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

NAN_BITS = np.uint32(0x7FFFFFFF)
UNCONFIRMED = "not yet confirmed on hardware"
_SOURCE = "arXiv 2511.10909 (MMA-Sim); PeerJ CS cs-330 for truncation and alignment"

# Bits of the significand with the hidden one, and the exponent bias, of an operand's bit pattern.
_FIELDS = {"f16": (11, 15), "bf16": (8, 127), "tf32": (11, 127)}
_LOWEST = -10_000  # the exponent of a zero: it never is the largest unless all addends are zero


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


class _Parts(NamedTuple):
    """Operands as integers: value = significand * 2^(exponent - (precision - 1))."""

    significand: Array
    exponent: Array
    special: Array  # float32: the value where it is infinite or NaN, else 0


def _take_apart(bits: Array, kind: str) -> _Parts:
    """Sign and significand (int64), exponent (int64; ``_LOWEST`` for a zero), specials."""
    precision, bias = _FIELDS[kind]
    raw = np.asarray(bits).astype(np.int64)
    if kind == "tf32":
        raw = raw >> 13  # a tensor core ignores the 13 low bits of its tf32 operands
    fraction_bits = precision - 1
    fraction = raw & ((1 << fraction_bits) - 1)
    field = (raw >> fraction_bits) & (2 * bias + 1)
    negative = (raw >> (fraction_bits + bias.bit_length() + 1)) & 1
    significand = np.where(field > 0, fraction | (1 << fraction_bits), fraction)
    exponent = np.where(significand == 0, _LOWEST, np.maximum(field, 1) - bias)
    huge = field == 2 * bias + 1
    special = np.where(huge, np.where(fraction > 0, np.nan, np.inf), 0.0).astype(np.float32)
    sign = 1 - 2 * negative
    return _Parts(np.where(huge, 0, sign * significand), exponent, special * sign)


def values(bits: Array, kind: str) -> Array:
    """Operand bit patterns (uint16, or uint32 for tf32) as float64; tf32 is truncated."""
    raw: Array = np.asarray(bits)
    wide: Array
    if kind == "f16":
        wide = raw.astype(np.uint16).view(np.float16)
    elif kind == "bf16":
        wide = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        wide = (raw.astype(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return wide.astype(np.float64)


def _shift(significand: Array, amount: Array) -> Array:
    """significand * 2^amount, truncated toward zero; amounts stay where 64 bits do."""
    left = np.minimum(np.maximum(amount, 0), 40)
    right = np.minimum(np.maximum(-amount, 0), 62)
    size = (np.abs(significand) << left) >> right
    return np.where(significand < 0, -size, size)


def _to_float32(total: Array, exponent: Array) -> Array:
    """``total * 2^exponent`` rounded toward zero to float32: large sums give infinity."""
    size = np.abs(total)
    length = np.frexp(size.astype(np.float64))[1].astype(np.int64)  # sums stay below 2^53
    drop = np.maximum(length - 24, -149 - exponent)
    kept = size >> np.clip(drop, 0, 62)
    up = np.clip(drop, 0, 62)
    value = np.ldexp(kept.astype(np.float64), (exponent + up).astype(np.int32))
    value = np.where(value > np.finfo(np.float32).max, np.inf, value)
    return np.where(total < 0, -value, value).astype(np.float32)


def _one_step(c: Array, a: _Parts, b: _Parts, kind: str, fraction_bits: int) -> Array:
    """c[M,N] + a[M,p] b[p,N] in one hardware step; c is float32."""
    raw = c.view(np.uint32).astype(np.int64)
    field = (raw >> 23) & 255
    fraction = raw & 0x7FFFFF
    accumulator = np.where(field > 0, fraction | 0x800000, fraction)
    c_exponent = np.where(accumulator == 0, _LOWEST, np.maximum(field, 1) - 127)
    accumulator = np.where(c < 0, -accumulator, accumulator)

    exponents: Array = a.exponent[:, :, None] + b.exponent[None, :, :]
    largest = np.maximum(np.max(exponents, axis=1), c_exponent)
    precision = _FIELDS[kind][0]
    scale = fraction_bits - 2 * (precision - 1)
    # Every addend becomes a count of 2^(largest - fraction_bits).
    total = _shift(accumulator, c_exponent - largest + fraction_bits - 23)
    for k in range(a.significand.shape[1]):
        product = a.significand[:, k, None] * b.significand[None, k, :]
        total += _shift(product, exponents[:, k, :] - largest + scale)
    return _to_float32(total, np.maximum(largest, -1000) - fraction_bits)


def _specials(c: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Where the answer is infinite or NaN because an input is, and which it is (float64)."""
    touched = np.any(~np.isfinite(a), axis=1, keepdims=True) | ~np.isfinite(c)
    touched = touched | np.any(~np.isfinite(b), axis=0, keepdims=True)
    answer = np.zeros(c.shape)
    if touched.any():
        rows, cols = np.nonzero(touched)
        clip = np.float64
        with np.errstate(all="ignore"):
            products = a[rows, :].astype(clip) * b[:, cols].T
            # Only the specials decide: a finite sum must not overflow into one of its own.
            products = np.where(np.isfinite(products), 0.0, products)
            addend = np.where(np.isfinite(c[rows, cols]), 0.0, c[rows, cols].astype(clip))
            answer[rows, cols] = products.sum(1) + addend
    return touched, answer


def multiply_add(a: Array, b: Array, c: Array, kind: str, arch: str, *, exact: bool = False) -> Array:
    """D[M,N] = A[M,K] B[K,N] + C[M,N] as the tensor core of ``arch`` computes it.

    Args:
        a: bit patterns [M, K], uint16 for ``f16`` and ``bf16``, uint32 (float32 bits) for ``tf32``.
        b: bit patterns [K, N].
        c: float32 [M, N].
        kind: ``"f16"``, ``"bf16"`` or ``"tf32"``.
        arch: such as ``"sm_90a"``.
        exact: a float64 sum rounded once instead of the model: for tests of anything but bits.

    Returns:
        float32 [M, N].
    """
    c = np.ascontiguousarray(c, np.float32)
    a_value, b_value = values(a, kind), values(b, kind)
    with np.errstate(all="ignore"):
        if exact:
            d = (a_value @ b_value + c).astype(np.float32)
        else:
            step = step_of(kind, arch)
            a_parts, b_parts = _take_apart(a, kind), _take_apart(b, kind)
            d = np.where(np.isfinite(c), c, np.float32(0))
            for k in range(0, a_value.shape[1], step.products):
                part = slice(k, k + step.products)
                left = _Parts(*(v[:, part] for v in a_parts))
                right = _Parts(*(v[part] for v in b_parts))
                # An overflow in an earlier step is an infinity from then on.
                d = np.where(np.isfinite(d), _one_step(d, left, right, kind, step.fraction_bits), d)
        touched, answer = _specials(c, a_value, b_value)
        d = np.where(touched, answer.astype(np.float32), d)
    return np.where(np.isnan(d), NAN_BITS.view(np.float32), d)
