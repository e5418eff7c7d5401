"""The linear layer, its gradients and its activations in float64: what every kernel must equal.

Written to be read beside the source document. With tokens as rows, weight as (out, in):

    U     = X Wᵀ              linear   (and U = X Wᵀ + b, then an activation)
    dl/dX = dl/dU · W         dgrad
    dl/dW = (dl/dU)ᵀ · X      wgrad
    dl/db = column sums of dl/dU   bgrad
    dl/dZ = dl/dU * act'(Z)   act_grad, where Z = X Wᵀ + b and U = act(Z)

Every function widens its inputs to float64, computes, and rounds once at the end with `round_to`.
The array-level functions `gemm`, `column_sum` and `act_grad` leave that rounding to the caller and
return float64. NaN and Inf propagate as float64 arithmetic has them, no warning leaks, a sum of no
terms is +0, and a zero sum is +0 (never -0). Arrays may have any strides and may be read-only.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array: TypeAlias = NDArray[Any]
Float64: TypeAlias = NDArray[np.float64]

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
PRECISIONS = ("ieee", "tf32", "tf32x3", "bf16x6")


# ---- the layer, on arrays with any leading dimensions ----


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    precision: str | None = None,
    out_dtype: DTypeLike | None = None,
) -> Array:
    """U = act(X Wᵀ + b), rounded once to `out_dtype` (default: the dtype of `x`).

    Shapes: x (*, in), weight (out, in), bias (out,), result (*, out).
    """
    u, _ = gemm(_rows(x), weight.T, bias=bias, activation=activation, precision=precision)
    u = u.reshape(*x.shape[:-1], weight.shape[0])
    return round_to(u, x.dtype if out_dtype is None else out_dtype)


def dgrad(dy: Array, weight: Array, *, precision: str | None = None, out_dtype: DTypeLike | None = None) -> Array:
    """dl/dX = dl/dU · W, rounded once to `out_dtype` (default: the dtype of `dy`).

    Shapes: dy (*, out), weight (out, in), result (*, in).
    """
    dx, _ = gemm(_rows(dy), weight, precision=precision)
    dx = dx.reshape(*dy.shape[:-1], weight.shape[1])
    return round_to(dx, dy.dtype if out_dtype is None else out_dtype)


def wgrad(
    dy: Array,
    x: Array,
    *,
    precision: str | None = None,
    out_dtype: DTypeLike | None = None,
    accumulate_into: Array | None = None,
) -> Array:
    """dl/dW = (dl/dU)ᵀ · X, plus `accumulate_into` where given, as a new array rounded once.

    Shapes: dy (*, out), x (*, in), result (out, in). The result's dtype is `out_dtype`, else that
    of `accumulate_into`, else that of `dy`.
    """
    dw, _ = gemm(_rows(dy).T, _rows(x), precision=precision, accumulate_into=accumulate_into)
    return round_to(dw, _gradient_dtype(dy, out_dtype, accumulate_into))


def bgrad(dy: Array, *, out_dtype: DTypeLike | None = None, accumulate_into: Array | None = None) -> Array:
    """dl/db = sum of dl/dU over tokens, plus `accumulate_into` where given, as a new array.

    Shapes: dy (*, out), result (out,). The dtype is chosen as by `wgrad`.
    """
    db = column_sum(_rows(dy), accumulate_into=accumulate_into)
    return round_to(db, _gradient_dtype(dy, out_dtype, accumulate_into))


def _rows(x: Array) -> Array:
    """(*, features) as (tokens, features); one vector is one token."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _gradient_dtype(dy: Array, out_dtype: DTypeLike | None, buffer: Array | None) -> DTypeLike:
    if out_dtype is not None:
        return out_dtype
    return dy.dtype if buffer is None else buffer.dtype


# ---- the array-level functions: float64 results before the final rounding ----


@np.errstate(all="ignore")
def gemm(
    a: Array,
    b: Array,
    *,
    bias: Array | None = None,
    activation: str | None = None,
    precision: str | None = None,
    accumulate_into: Array | None = None,
) -> tuple[Float64, Float64]:
    """D = C + act(Z) with Z = A·B + bias; returns (D, Z), both float64 and unrounded.

    Shapes: a (m, k), b (k, n), bias (n,), accumulate_into C (m, n). `precision` other than None and
    "ieee" first rounds or splits the float32 operands as the kernels do (see `products`).
    """
    z = np.zeros((a.shape[0], b.shape[1]))
    for a_part, b_part in products(a, b, precision):
        z += a_part @ b_part  # starts from +0, so that a sum of -0 is +0
    if bias is not None:
        z = z + bias.astype(np.float64)
    d = activate(z, activation)
    if accumulate_into is not None:
        d = accumulate_into.astype(np.float64) + d
    return d, z


@np.errstate(all="ignore")
def column_sum(x: Array, *, accumulate_into: Array | None = None) -> Float64:
    """Sums of the columns of x (k, n), plus `accumulate_into` (n,) where given, in float64."""
    total: Float64 = np.sum(x, axis=0, dtype=np.float64, initial=0.0)
    return total if accumulate_into is None else accumulate_into.astype(np.float64) + total


@np.errstate(all="ignore")
def act_grad(dy: Array, preact: Array, activation: str | None) -> Float64:
    """dl/dZ = dl/dU * act'(Z), element by element, in float64; `preact` is Z as it was stored."""
    return dy.astype(np.float64) * activation_derivative(preact, activation)


# ---- activations: act(z) = z P(z), so act'(z) = P(z) + z P'(z) ----


@np.errstate(all="ignore")
def activate(z: Array, activation: str | None) -> Float64:
    """act(z) in float64 for one of ACTIVATIONS, or z itself for None; act(-Inf) = 0.

    relu: max(z, 0).  gelu: z Φ(z) with the normal distribution Φ(z) = (1 + erf(z/√2)) / 2.
    silu: z S(z) with S(z) = 1 / (1 + exp(-z)).  gelu_tanh: z (1 + tanh u(z)) / 2 = z S(2 u(z)) with
    u(z) = √(2/π) (z + 0.044715 z³).
    """
    z = z.astype(np.float64)
    if activation is None:
        return z
    if activation == "relu":
        return np.where(z <= 0.0, 0.0, z)  # a NaN is not <= 0, so it stays
    return np.where(z == -np.inf, -0.0, z * activation_factor(z, activation)[0])


@np.errstate(all="ignore")
def activation_derivative(z: Array, activation: str | None) -> Float64:
    """act'(z) in float64; relu'(0) = 0, act'(-Inf) = 0, act'(Inf) = 1, NaN gives NaN."""
    factor, rest = activation_factor(z, activation)
    return factor + rest


@np.errstate(all="ignore")
def activation_factor(z: Array, activation: str | None) -> tuple[Float64, Float64]:
    """P(z) and z P'(z) in float64, finite for every z that is not NaN.

    gelu: P' is the normal density.  silu: P' = S(z) S(-z).  gelu_tanh: P' = 2u' S(2u) S(-2u).
    """
    z = np.clip(z.astype(np.float64), -1600.0, 1600.0)  # beyond, every P' is exactly 0
    if activation is None:
        return np.ones_like(z), np.zeros_like(z)
    if activation == "relu":
        return np.where(z <= 0.0, 0.0, np.where(z > 0.0, 1.0, z)), np.zeros_like(z)
    if activation == "gelu":
        density = _exp_minus_square(z, 0.5) / math.sqrt(2.0 * math.pi)
        return _normal_distribution(z), z * density
    if activation == "gelu_tanh":
        u, slope = tanh_argument(z)
        return _sigmoid(2.0 * u), z * (2.0 * slope) * (_sigmoid(2.0 * u) * _sigmoid(-2.0 * u))
    if activation == "silu":
        return _sigmoid(z), z * (_sigmoid(z) * _sigmoid(-z))
    raise ValueError(f"activation must be None or one of {ACTIVATIONS}, got {activation!r}")


def _sigmoid(z: Float64) -> Float64:
    """1 / (1 + exp(-z)), relatively accurate on both sides and without overflow."""
    e = np.exp(-np.abs(z))
    return np.where(z < 0.0, e, 1.0) / (1.0 + e)


def tanh_argument(z: Float64) -> tuple[Float64, Float64]:
    """u(z) of gelu_tanh and u'(z); z is cut at ±40, where S(2u) has long become 0 or 1."""
    c = np.clip(z, -40.0, 40.0)
    scale = math.sqrt(2.0 / math.pi)
    return scale * (c + 0.044715 * c**3), scale * (1.0 + 3.0 * 0.044715 * c**2)


def _normal_distribution(z: Float64) -> Float64:
    """Φ(z) = erfc(-z/√2) / 2, relatively accurate far into the negative tail."""
    x = np.abs(z) * math.sqrt(0.5)
    tail = 0.5 * np.where(x < 0.5, 1.0 - _erf_series(x), _erfc_tail(x, _exp_minus_square(z, 0.5)))
    return np.where(z < 0.0, tail, 1.0 - tail)


# ---- erf and erfc ----


@np.errstate(all="ignore")
def erf(x: Array) -> Float64:
    """erf(x) = 2/√π ∫₀ˣ exp(-t²) dt in float64, within 2 units in the last place."""
    x = x.astype(np.float64)
    a = np.abs(x)
    large = np.copysign(1.0 - _erfc_tail(a, _exp_minus_square(a, 1.0)), x)
    return np.where(a < 1.0, _erf_series(x), large)


@np.errstate(all="ignore")
def erfc(x: Array) -> Float64:
    """erfc(x) = 1 - erf(x) in float64, within 6 units in the last place (5 is the most seen)."""
    x = x.astype(np.float64)
    tail = _erfc_tail(np.abs(x), _exp_minus_square(x, 1.0))
    return np.where(np.abs(x) < 0.5, 1.0 - _erf_series(x), np.where(x < 0.0, 2.0 - tail, tail))


def _erf_series(x: Float64) -> Float64:
    """The Maclaurin series 2/√π Σ (-1)ⁿ x²ⁿ⁺¹ / (n! (2n+1)); 20 terms are exact to 1e-19 at 1."""
    y = np.minimum(x * x, 1.0)
    total = np.zeros_like(y)
    for n in range(20, 0, -1):
        total = total * y + (-1.0) ** n / (math.factorial(n) * (2 * n + 1))
    series: Float64 = 2.0 / math.sqrt(math.pi) * (x + x * (total * y))
    return np.copysign(series, x)  # erf(-0) = -0


def _erfc_tail(x: Float64, gauss: Float64) -> Float64:
    """erfc(x) for x >= 0.5, given gauss = exp(-x²).

    erfc(x) = exp(-x²) (x/π) ∫ exp(-t²) / (t² + x²) dt over the real line. The trapezoidal rule with
    step h = 1/2 has the relative error exp(-(π/h)²) = 7e-18 once the residue of the pole t = ix,
    2 / (exp(2πx/h) - 1), is taken off where the pole lies below π/h. All terms are positive.
    """
    h = 0.5
    x = np.clip(x, 0.5, 40.0)
    y = x * x
    total = np.zeros_like(y)
    for n in range(13, 0, -1):
        total += math.exp(-((n * h) ** 2)) / (y + (n * h) ** 2)
    rule = gauss * (h / math.pi / x) * (1.0 + 2.0 * y * total)
    residue = 2.0 / np.expm1(np.minimum((2.0 * math.pi / h) * x, 700.0))
    return np.where(x < math.pi / h, rule - residue, rule)


def _exp_minus_square(x: Float64, scale: float) -> Float64:
    """exp(-scale x²) for scale 1 or 1/2; x² is taken exactly, or its error would grow by x²."""
    x = np.clip(x, -50.0, 50.0)
    high = x.astype(np.float32).astype(np.float64)  # 24 bits: its square is exact
    return np.exp(-scale * (high * high)) * np.exp(-scale * ((x - high) * (x + high)))


# ---- rounding ----


@np.errstate(all="ignore")
def round_to(x64: Array, dtype: DTypeLike) -> Array:
    """float64 values rounded once, to nearest and ties to even, overflow to Inf, as a new array.

    `dtype` is float64, float32, float16 or bfloat16 (the name, or ml_dtypes.bfloat16).
    """
    if _is_bfloat16(dtype):
        import ml_dtypes

        # ml_dtypes goes through float32 and would round twice; after this its cast is exact.
        return _round_bits(x64, 8, -133).astype(np.float32).astype(ml_dtypes.bfloat16)
    target = np.dtype(dtype)
    if target not in (np.float64, np.float32, np.float16):
        raise TypeError(f"dtype must be float64, float32, float16 or bfloat16, got {target.name}")
    return x64.astype(target)


def _is_bfloat16(dtype: DTypeLike) -> bool:
    # NumPy knows the name only once ml_dtypes has been imported.
    return dtype == "bfloat16" if isinstance(dtype, str) else np.dtype(dtype).name == "bfloat16"


def _round_bits(x: Array, bits: int, lowest: int) -> Float64:
    """x to `bits` significant bits, ties to even, never finer than 2**lowest (the subnormals)."""
    x = x.astype(np.float64)
    _, exponent = np.frexp(x)
    step = np.maximum(exponent - bits, lowest)
    return np.where(np.isfinite(x), np.ldexp(np.rint(np.ldexp(x, -step)), step), x)


# ---- precisions of float32 operands ----


def round_tf32(x: Array) -> NDArray[np.float32]:
    """float32 to TF32 (8 exponent, 10 mantissa bits), to nearest, ties away: cvt.rna.tf32.f32."""
    x = x.astype(np.float32)
    rounded = ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(x), rounded, x)


@np.errstate(all="ignore")
def planes(x: Array, precision: str) -> list[NDArray[np.float32]]:
    """The float32 array `x` as the planes that the kernels of `precision` multiply, largest first.

    tf32: [tf32(x)].  tf32x3: [hi, lo] with hi = tf32(x), lo = tf32(x - hi).
    bf16x6: [p0, p1, p2], each the bfloat16 nearest to what the ones before leave over.
    In the splits (kernels/split_planes.cuh) the first plane of a finite x is kept finite, and that of a nonzero x
    nonzero: where it would overflow it is the largest number of its format, where it would vanish the smallest. Inf
    is kept in the last plane, behind a first plane of the same sign: Inf becomes (1, 0, Inf) and NaN (1, 0, NaN), so
    that the products have Inf and NaN where IEEE has them. Bits below the smallest subnormal of the format (2**-133
    for bfloat16, 2**-136 for tf32) are lost.
    """
    if x.dtype != np.float32:
        raise ValueError(f"precision {precision!r} needs float32 operands, got {x.dtype.name}")
    if precision == "tf32":
        return [round_tf32(x)]
    if precision not in _SPLITS:
        raise ValueError(f"precision must be None or one of {PRECISIONS}, got {precision!r}")
    count, largest, smallest, second = _SPLITS[precision]
    rounded = round_tf32 if precision == "tf32x3" else _bfloat16_plane
    finite = np.where(np.isfinite(x), x, np.float32(1.0))
    least = np.where(finite == 0.0, np.float32(0.0), smallest)
    first = np.copysign(np.clip(np.abs(rounded(finite)), least, largest), finite)
    parts, rest = [first], finite - first
    for _ in range(count - 1):
        parts.append(np.clip(rounded(rest), -second, second))
        rest = rest - parts[-1]
    special = ~np.isfinite(x)
    if special.any():
        for plane in parts:
            plane[special] = 0.0
        parts[0][special] = np.copysign(np.float32(1.0), x[special])
        parts[-1][special] = x[special]
    return parts


@np.errstate(all="ignore")
def join(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The float32 array that ``planes`` split into ``parts``, but for what was lost."""
    total = np.sum([part.astype(np.float64) for part in parts], axis=0).astype(np.float32)
    last = parts[-1].astype(np.float32)
    return np.where(np.isfinite(last), np.copysign(total, parts[0]), last)


def _bfloat16_plane(x: Array) -> NDArray[np.float32]:
    return _round_bits(x, 8, -133).astype(np.float32)


# The number of planes of a split, the largest and smallest magnitude of the first of a nonzero number, and the largest
# of the others: of tf32x3 less than what would round hi + lo to Inf.
_SPLITS = {
    "tf32x3": (2, np.float32(math.ldexp(2047.0, 117)), np.float32(2.0**-136), np.float32(math.ldexp(2047.0, 106))),
    "bf16x6": (3, np.float32(math.ldexp(255.0, 120)), np.float32(2.0**-133), np.float32(math.ldexp(1.0, 120))),
}


def products(a: Array, b: Array, precision: str | None) -> list[tuple[Float64, Float64]]:
    """The pairs of float64 matrices whose products add up to A·B, in the order of the kernels.

    Every elementary product of a pair is exact in float64 (for operands narrower than float64).
    """
    if precision is None or precision == "ieee":
        return [(a.astype(np.float64), b.astype(np.float64))]
    order = {
        "tf32": [(0, 0)],
        "tf32x3": [(1, 0), (0, 1), (0, 0)],
        "bf16x6": [(2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0)],
    }
    a_planes = [plane.astype(np.float64) for plane in planes(a, precision)]
    b_planes = [plane.astype(np.float64) for plane in planes(b, precision)]
    return [(a_planes[i], b_planes[j]) for i, j in order[precision]]
