"""How far a kernel may be from the exact result, element by element, before any kernel is run.

Rounding-error analysis as in N. Higham, Accuracy and Stability of Numerical Algorithms, chapters 3
and 4, for the order of reduction that docs/design.md fixes: K is cut into segments, each segment is
one chain (split precisions restart it every `promote` elements and add it to the segment's sum),
and segment sums are added in ascending order. A chain of n roundings of unit u has a relative error
of at most n u / (1 - n u) of the gauge |A|·|B|.

One tensor-core instruction multiplies exactly, aligns its p products and the accumulator to the
largest exponent, cuts them off F fraction bits below it, and rounds the sum toward zero. That is at
most 2 + (p+1) 2**(24-F) units of 2**-24 for every p products; p and F are reverse-engineered, not
documented by NVIDIA. A subnormal operand is aligned as if it were the smallest normal number, and
counts as that much in the gauge.

A bound contains the rounding of the output and the error of the float64 reference itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from ..reference import (
    Array,
    Float64,
    act_grad,
    activation_factor,
    column_sum,
    gemm,
    products,
    tanh_argument,
)

U32 = 2.0**-24
U64 = 2.0**-53

# Error of representing both operands, in units of the gauge, against the product of the unrounded
# operands: (1 + u)**2 - 1 with u = 2**-11; 3 u**2; and the products that bf16x6 leaves out. Holds for
# operands that no plane is too small for; `operand_error` is what the others lose beside it.
REPRESENTATION = {"ieee": 0.0, "tf32": 16388 * U32, "tf32x3": 12 * U32, "bf16x6": 2 * U32}

# By precision: the size below which a plane of an operand may be cut at the smallest subnormal of its
# format, and half of that subnormal.
_CUT = {"tf32": (2.0**-126, 2.0**-137), "tf32x3": (2.0**-115, 2.0**-137), "bf16x6": (2.0**-110, 2.0**-134)}

# The planes of x, and the pairs of planes of x and y, add up to at most this in absolute value, in units
# of |x| and of |x| |y|: (1 + 2**-7 + 2**-16)**2 is the largest, of bf16x6.
_PLANES_SUM = 1.0 + 2.0**-5
_MOST_PLANES = 3

# Upper limits of |act'|: gelu's maximum is 1.1289 at √2, gelu_tanh's 1.1290, silu's 1.0998.
LIPSCHITZ = {None: 1.0, "relu": 1.0, "gelu": 1.13, "gelu_tanh": 1.13, "silu": 1.1}

# Relative error of the factor P in act(z) = z P(z) as the kernels compute it, in units of the
# accumulator: exp 4, carried square 2, the Horner sum of the normal tail 15, the quotients 6.
ACTIVATION_ULPS = 32.0
# The same for the reference, in units of 2**-53.
REFERENCE_ACTIVATION_ULPS = 16.0

# Unit roundoff, and half the distance of subnormals, of a stored result.
_ROUNDING = {
    "float64": (U64, 2.0**-1074),
    "float32": (U32, 2.0**-150),
    "float16": (2.0**-11, 2.0**-25),
    "bfloat16": (2.0**-8, 2.0**-134),
}

# (products per instruction, fraction bits) for 16-bit and for TF32 operands.
_TENSOR_CORES = {
    "sm_80": ((8, 24), (4, 24)),
    "sm_86": ((8, 24), (4, 24)),
    "sm_89": ((8, 24), (4, 24)),
    "sm_90": ((16, 25), (8, 25)),
    "sm_100": ((16, 25), (8, 25)),
    "sm_120": ((16, 25), (8, 25)),
}


@dataclass(frozen=True)
class Summation:
    """How a kernel family adds up the products of one output element.

    unit: unit roundoff of the accumulator.  segment: elements of K in one segment.
    step_k, step_units: products per instruction, and units lost by it.
    promote: elements after which a split precision restarts its chain, or None.
    passes: instructions per step of K (one per pair of planes).
    """

    unit: float
    segment: int
    step_k: int = 1
    step_units: float = 1.0
    promote: int | None = None
    passes: int = 1

    def chain_units(self, k: int) -> float:
        """Units lost inside one segment of a problem with depth `k`."""
        depth = min(k, self.segment)
        chain = depth if self.promote is None else min(depth, self.promote)
        restarts = 0 if self.promote is None else max(-(-depth // self.promote) - 1, 0)
        return self.step_units * self.passes * -(-chain // self.step_k) + restarts

    def additions(self, k: int, accumulate: bool) -> int:
        """Roundings when segment sums are added to each other, or to what the output holds."""
        segments = -(-k // self.segment)
        return segments if accumulate else max(segments - 1, 0)

    @property
    def tiny(self) -> float:
        """Upper limit of the absolute error of one rounding among the accumulator's subnormals."""
        return 2.0**-1074 if self.unit == U64 else 2.0**-149


def fma(dtype: str, segment: int) -> Summation:
    """Chains of fused multiply-adds: float64 for float64 operands, float32 for all others.

    Also right for column sums and for any other order inside a segment, such as a tree.
    """
    return Summation(U64 if dtype == "float64" else U32, segment)


def tensor_core(arch: str, precision: str | None = None, *, segment: int = 4096, promote: int | None = 64) -> Summation:
    """Tensor-core chains for 16-bit operands (`precision` None) or a precision of float32 ones.

    `promote` counts for the split precisions only. An architecture whose adder is not known (sm_75)
    gets three units for every product: as many as four products with 23 fraction bits lose, and more
    than eight with 24.
    """
    pair = _TENSOR_CORES.get(arch.rstrip("af"))
    step_k, units = 1, 3.0
    if pair is not None:
        step_k, fraction = pair[precision in ("tf32", "tf32x3")]
        units = 2.0 + (step_k + 1) * 2.0 ** (24 - fraction)
    passes = {"tf32x3": 3, "bf16x6": 6}.get(precision or "", 1)
    return Summation(U32, segment, step_k, units, promote if passes > 1 else None, passes)


def operand_error(x: Array, precision: str | None) -> Float64:
    """What the planes of the float32 array `x` may be off by beyond REPRESENTATION, element by element.

    For `a_error` and `b_error` of `gemm_bound` with `representation`. It is 0 but for tiny elements. A first plane
    that is kept from vanishing (`reference.planes`) is up to four times as large as what it stands for.
    """
    size = np.abs(x.astype(np.float64))
    if precision is None or precision == "ieee":
        return np.zeros_like(size)
    below, half = _CUT[precision]
    cut = np.where(size < below, half, 0.0)
    return np.where((size <= half) & (size > 0.0) & (precision != "tf32"), 4.0 * half, cut)


def magnitude(x: Float64, dtype: DTypeLike, how: Summation, representation: float = 0.0) -> Float64:
    """|x| as it counts in the gauge |A|·|B|: a subnormal number of a tensor core's `dtype` as the smallest normal one.

    With `representation`, `x` stands for all of its planes, and each of them counts.
    """
    size: Float64 = np.abs(x)
    if how.step_units <= 1.0:
        return size
    least = (2.0**-14 if np.dtype(dtype) == np.float16 else 2.0**-126) * (_MOST_PLANES if representation else 1)
    return np.where(size > 0.0, size + least, size)


@np.errstate(all="ignore")
def gemm_bound(
    a: Array,
    b: Array,
    how: Summation,
    *,
    out_dtype: DTypeLike,
    precision: str | None = None,
    bias: Array | None = None,
    activation: str | None = None,
    activation_ulps: float = ACTIVATION_ULPS,
    accumulate_into: Array | None = None,
    a_error: Float64 | None = None,
    b_error: Float64 | None = None,
    representation: float = 0.0,
) -> Float64:
    """Largest |stored - d| for `d, _ = reference.gemm(...)` with the same arguments, (m, n).

    `precision` as given to the reference: operands rounded alike, so only the summation errs. To
    judge a lower precision against the product of the unrounded operands instead, leave it None and
    pass `representation=REPRESENTATION[precision]`, and `operand_error` of both where they may be tiny.
    `activation_ulps`: relative error of the kernel's factor P in act(z) = z P(z), in units of the
    accumulator, beside what rounding the argument of gelu_tanh costs. `a_error`, `b_error`: what
    the operands are off by, element by element (for dx and dw when dz = dy * act'(preact)
    was rounded: `act_grad_bound`).
    """
    k = a.shape[1]
    d, z = gemm(a, b, bias=bias, activation=activation, precision=precision, accumulate_into=accumulate_into)
    pairs = products(a, b, precision)
    gauge = np.zeros_like(d)
    for a_part, b_part in pairs:
        gauge += magnitude(a_part, a.dtype, how, representation) @ magnitude(b_part, b.dtype, how, representation)
    operand_errors: list[Float64] = []
    if a_error is not None:
        operand_errors.append(a_error @ np.abs(b.astype(np.float64)))
    if b_error is not None:
        operand_errors.append(np.abs(a.astype(np.float64)) @ b_error)
    if a_error is not None and b_error is not None:
        operand_errors.append(a_error @ b_error)
    return gauge_bound(
        gauge,
        z,
        d,
        how,
        k=k,
        pairs=len(pairs),
        out_dtype=out_dtype,
        bias=bias is not None,
        activation=activation,
        activation_ulps=activation_ulps,
        accumulate_into=accumulate_into,
        operand_error=sum(operand_errors[1:], operand_errors[0]) if operand_errors else None,
        representation=representation,
    )


@np.errstate(all="ignore")
def gauge_bound(
    gauge: Float64,
    z: Float64,
    d: Float64,
    how: Summation,
    *,
    k: int,
    out_dtype: DTypeLike,
    pairs: int = 1,
    bias: bool = False,
    activation: str | None = None,
    activation_ulps: float = ACTIVATION_ULPS,
    accumulate_into: Array | None = None,
    operand_error: Float64 | None = None,
    representation: float = 0.0,
) -> Float64:
    """`gemm_bound` for any part of D whose |A|·|B| (`gauge`, of `magnitude`), Z and D are known in float64.

    Everything is element by element and goes through NumPy's dispatch, so CuPy arrays stay on their
    device. `k`: depth of the product. `pairs`: products of planes that `gauge` adds up.
    `accumulate_into`: that part of what the output held. `operand_error`: error of the product that
    comes from errors of A and B. The rest as for `gemm_bound`.
    """
    error = _summation_error(how, k, gauge, accumulate_into, representation, terms=k * pairs)
    if operand_error is not None:
        # The summation error is relative to the operands as they are, not as they should be.
        slack = 2.0 * _gamma(how.unit, how.chain_units(k) + how.additions(k, True))
        error = (error + operand_error) * (1.0 + slack)
    if bias:
        error = error + (how.unit + U64) * (np.abs(z) + error) + how.tiny
    if activation is not None:
        # At the perturbed z; an infinite z is the same in the kernel.
        error = np.where(np.isinf(z), 0.0, LIPSCHITZ[activation] * error)
        if activation != "relu":
            factor, _, argument = _activation_terms(z, activation)
            size = np.where(factor == 0.0, 0.0, np.abs(z) * factor) + error
            ulps = activation_ulps * how.unit + REFERENCE_ACTIVATION_ULPS * U64
            error = error + (ulps + how.unit * argument * (1.0 - factor)) * size
            error = error + 4.0 * how.tiny * (1.0 + np.clip(np.abs(z), 0.0, 1600.0))
    return _stored(error, d, how, out_dtype)


@np.errstate(all="ignore")
def column_sum_bound(
    x: Array,
    how: Summation,
    *,
    out_dtype: DTypeLike,
    accumulate_into: Array | None = None,
    x_error: Float64 | None = None,
) -> Float64:
    """Largest |stored - d| for `d = reference.column_sum(...)`, shape (n,), float64."""
    k = x.shape[0]
    gauge = np.abs(x).sum(axis=0, dtype=np.float64)
    error = _summation_error(how, k, gauge, accumulate_into, 0.0, terms=k)
    if x_error is not None:
        slack = _gamma(how.unit, how.chain_units(k) + how.additions(k, True))
        error = error + (1.0 + slack) * x_error.sum(axis=0)
    return _stored(error, column_sum(x, accumulate_into=accumulate_into), how, out_dtype)


@np.errstate(all="ignore")
def act_grad_bound(
    dy: Array,
    preact: Array,
    activation: str | None,
    *,
    out_dtype: DTypeLike,
    activation_ulps: float = ACTIVATION_ULPS,
) -> Float64:
    """Largest |stored - dz| for `dz = reference.act_grad(...)`, computed in the accumulator.

    `activation_ulps`: as for `gemm_bound`, for both terms of act'(z) = P(z) + z P'(z).
    """
    how = fma(dy.dtype.name, 1)
    dz = act_grad(dy, preact, activation)
    size = np.abs(dy.astype(np.float64))
    if activation is None or activation == "relu":
        error = np.zeros_like(dz)  # a factor of 0 or 1
    else:
        factor, rest, argument = _activation_terms(preact, activation)
        ulps = activation_ulps * how.unit + REFERENCE_ACTIVATION_ULPS * U64
        slope = ulps * (factor + rest) + how.unit * argument * (factor * (1.0 - factor) + rest)
        error = size * (slope + 8.0 * how.tiny * 1600.0)
        error = error + how.unit * (np.abs(dz) + error) + how.tiny
    return _stored(error, dz, how, out_dtype)


def _activation_terms(z: Array, activation: str) -> tuple[Float64, Float64, Float64]:
    """P(z), |z P'(z)|, and 5 |w| for gelu_tanh, whose argument w = 2u(z) takes five roundings.

    An error of |w| units in w moves S(w) by |w| S(-w) of itself, and S(w) S(-w) by at most |w|.
    """
    factor, rest = activation_factor(z, activation)
    if activation != "gelu_tanh":
        return factor, np.abs(rest), np.zeros_like(factor)
    w = 2.0 * tanh_argument(z.astype(np.float64))[0]
    return factor, np.abs(rest), 5.0 * np.abs(w)


def _gamma(unit: float, units: float) -> float:
    """n u / (1 - n u), the relative error of n roundings in a row; infinite where n u >= 1."""
    return units * unit / (1.0 - units * unit) if units * unit < 1.0 else math.inf


def _summation_error(
    how: Summation,
    k: int,
    gauge: Float64,
    start: Array | None,
    representation: float,
    terms: int,
) -> Float64:
    """Error of K products in the canonical order, plus what the float64 reference adds to it."""
    chain = _gamma(how.unit, how.chain_units(k)) * (_PLANES_SUM if representation else 1.0)
    additions = how.additions(k, start is not None)
    total = gauge if start is None else gauge * (1.0 + chain) + np.abs(start.astype(np.float64))
    error = (chain + representation) * gauge
    error = error + _gamma(how.unit, additions) * (1.0 + chain) * total
    reference = _gamma(U64, terms + (start is not None)) * total
    underflow = (how.chain_units(k) * -(-k // how.segment) + additions) * how.tiny
    result: Float64 = error + reference + underflow
    return result


def _stored(error: Float64, exact: Float64, how: Summation, out_dtype: DTypeLike) -> Float64:
    """The error once the accumulator has been rounded to a narrower output."""
    name = out_dtype if isinstance(out_dtype, str) else np.dtype(out_dtype).name
    unit, tiny = _ROUNDING[name]
    if unit <= how.unit:
        return error
    result: Float64 = error + unit * (np.abs(exact) + error) + tiny
    return result
