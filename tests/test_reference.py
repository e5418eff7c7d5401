"""The reference against slow exact arithmetic, finite differences and identities."""

from __future__ import annotations

import ast
import itertools
import math
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpulinear import reference
from gpulinear.reference import ACTIVATIONS, activate, activation_derivative, round_to

BF16 = np.dtype(ml_dtypes.bfloat16)
# significant bits, exponent of the smallest subnormal, largest finite value
FORMATS = {
    "float32": (24, -149, (2**24 - 1) * 2**104),
    "float16": (11, -24, 65504),
    "bfloat16": (8, -133, (2**8 - 1) * 2**120),
}
U64 = 2.0**-53


def exact(x) -> np.ndarray:
    """An array of floats as an array of Fractions."""
    flat = [Fraction(float(v)) for v in np.ravel(x)]
    return np.array(flat, dtype=object).reshape(np.shape(x))


def nearest(value: Fraction, bits: int, lowest: int, ties: str = "even") -> Fraction:
    """`value` rounded to `bits` significant bits in rational arithmetic."""
    if value == 0:
        return value
    exponent = 0
    while abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** max(exponent + 1 - bits, lowest)
    steps = abs(value) / step
    whole, rest = steps.numerator // steps.denominator, steps % 1
    up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and (ties == "away" or whole % 2 == 1))
    return (1 if value > 0 else -1) * (whole + up) * step


def ints(shape, seed, dtype=np.float64, limit=2):
    return np.random.default_rng(seed).integers(-limit, limit + 1, shape).astype(dtype)


# ---- rounding ----


def check_rounding(value: float, name: str) -> None:
    bits, lowest, largest = FORMATS[name]
    got = float(round_to(np.array([value]), name)[0])
    want = nearest(Fraction(value), bits, lowest)
    if abs(want) > largest:
        assert got == math.copysign(math.inf, value)
    else:
        assert Fraction(got) == want
        assert math.copysign(1, got) == math.copysign(1, value)


@pytest.mark.parametrize("name", FORMATS)
def test_rounding_at_ties_and_limits(name):
    bits, lowest, largest = FORMATS[name]
    points = [0.0, math.ldexp(1, lowest), 1.0, 1.5, 2.0 - 2.0 ** (1 - bits), 3.0, float(largest)]
    for point in points:
        step = math.ldexp(1, max(math.frexp(point)[1] - bits, lowest)) if point else 2.0**lowest
        for quarters in range(-8, 9):
            value = point + step * quarters / 4
            for v in (value, np.nextafter(value, math.inf), np.nextafter(value, -math.inf)):
                check_rounding(float(v), name)
                check_rounding(-float(v), name)


@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None, max_examples=200)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_rounding_of_any_float64(name, value):
    check_rounding(value, name)


def test_bfloat16_is_rounded_once():
    value = np.array([1 + 2.0**-8 + 2.0**-40])  # a tie once it has been rounded to float32
    assert float(round_to(value, "bfloat16")[0]) == 1 + 2.0**-7


@pytest.mark.parametrize("name", [*FORMATS, "float64"])
def test_rounding_keeps_special_values_and_names_the_dtype(name):
    got = round_to(np.array([math.nan, math.inf, -math.inf, -0.0]), name)
    assert got.dtype.name == name
    assert np.isnan(got[0]) and got[1] == math.inf and got[2] == -math.inf
    assert got[3] == 0 and np.signbit(got[3])
    assert round_to(np.zeros(2), got.dtype).dtype == got.dtype


def test_rounding_to_something_else_is_refused():
    with pytest.raises(TypeError, match="int32"):
        round_to(np.zeros(1), np.int32)


# ---- matrix products ----


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BF16])
@pytest.mark.parametrize("m,n,k", [(1, 1, 1), (2, 3, 5), (3, 1, 7), (1, 4, 0), (0, 2, 3), (2, 0, 3)])
def test_gemm_against_fractions(dtype, m, n, k):
    rng = np.random.default_rng(m + 10 * n + 100 * k)
    a, b = (rng.standard_normal(s).astype(dtype) for s in ((m, k), (k, n)))
    bias, c = (rng.standard_normal(s).astype(dtype) for s in ((n,), (m, n)))
    d, z = reference.gemm(a, b, bias=bias, accumulate_into=c)
    fa, fb = exact(a), exact(b)
    for i, j in np.ndindex(m, n):
        want = sum((fa[i, p] * fb[p, j] for p in range(k)), Fraction(float(bias[j])))
        gauge = sum((abs(fa[i, p] * fb[p, j]) for p in range(k)), Fraction(abs(float(bias[j]))))
        assert abs(Fraction(z[i, j]) - want) <= (k + 1) * Fraction(U64) * gauge
        total = want + Fraction(float(c[i, j]))
        gauge += abs(Fraction(float(c[i, j])))
        assert abs(Fraction(d[i, j]) - total) <= (k + 2) * Fraction(U64) * gauge


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BF16])
def test_layer_functions_are_the_formulas_on_integers(dtype):
    x, w, dy, b = (ints(s, i, dtype) for i, s in enumerate([(2, 3, 5), (4, 5), (2, 3, 4), (4,)]))
    y = reference.linear(x, w, b)
    dx, dw, db = reference.dgrad(dy, w), reference.wgrad(dy, x), reference.bgrad(dy)
    i64 = [v.astype(np.int64) for v in (x, w, dy, b)]
    for got, want in (
        (y, np.einsum("abi,oi->abo", i64[0], i64[1]) + i64[3]),
        (dx, np.einsum("abo,oi->abi", i64[2], i64[1])),
        (dw, np.einsum("abo,abi->oi", i64[2], i64[0])),
        (db, np.einsum("abo->o", i64[2])),
    ):
        assert got.dtype == dtype and got.shape == want.shape
        assert (got.astype(np.int64) == want).all()
    # <dy, x Wᵀ> = <dy W, x> = <dyᵀ x, W>, exactly
    u = (y.astype(np.int64) - i64[3]) * i64[2]
    assert u.sum() == (dx.astype(np.int64) * i64[0]).sum() == (dw.astype(np.int64) * i64[1]).sum()


def test_the_result_is_rounded_once_and_to_the_dtype_asked_for():
    x = np.array([[1, 2.0**-11, 2.0**-30]], np.float16)
    x[0, 2] = 2.0**-24
    w = np.ones((1, 3), np.float16)
    # a float16 sum in any order gives 1, the exact sum lies above the tie
    assert reference.linear(x, w)[0, 0] == 1 + 2.0**-10
    wide = reference.linear(x, w, out_dtype="float32")
    assert wide.dtype == np.float32 and wide[0, 0] == np.float32(1 + 2.0**-11 + 2.0**-24)
    total = np.full((1, 3), 2048, np.float32)
    got = reference.wgrad(w[:, :1], x, accumulate_into=total)
    assert got.dtype == np.float32 and (total == 2048).all()
    assert got[0, 0] == 2049
    assert reference.bgrad(w, accumulate_into=total[0]).tolist() == [2049] * 3
    assert reference.bgrad(w, accumulate_into=total[0], out_dtype="float16").dtype == np.float16
    bias = np.array([2.0**-20], np.float32)  # a wider bias is not narrowed
    assert reference.linear(x[:, :1], w[:, :1], bias, out_dtype="float32")[0, 0] == 1 + 2.0**-20


def test_one_vector_and_no_tokens():
    w = ints((3, 4), 0)
    v = ints((4,), 1)
    assert reference.linear(v, w).tolist() == (w @ v).tolist()
    g = ints((3,), 2)
    assert reference.dgrad(g, w).tolist() == (w.T @ g).tolist()
    assert reference.wgrad(g, v).tolist() == np.outer(g, v).tolist()
    assert reference.bgrad(g).tolist() == g.tolist()
    empty_x, empty_dy = np.zeros((0, 4)), np.zeros((2, 0, 3))
    assert reference.linear(empty_x, w).shape == (0, 3)
    assert reference.dgrad(empty_dy, w).shape == (2, 0, 4)
    assert reference.wgrad(np.zeros((0, 3)), empty_x).tolist() == np.zeros((3, 4)).tolist()
    assert reference.bgrad(empty_dy).tolist() == [0, 0, 0]


def test_no_products_give_zeros_or_the_activated_bias():
    x, w = np.zeros((2, 0), np.float32), np.zeros((3, 0), np.float32)
    zeros = reference.linear(x, w)
    assert zeros.tolist() == np.zeros((2, 3)).tolist() and not np.signbit(zeros).any()
    bias = np.array([-1, 0, 2], np.float32)
    assert reference.linear(x, w, bias, activation="relu").tolist() == [[0, 0, 2]] * 2
    dx = reference.dgrad(np.zeros((2, 0), np.float32), np.zeros((0, 5), np.float32))
    assert dx.tolist() == np.zeros((2, 5)).tolist()


def test_a_sum_of_negative_zeros_is_positive_zero():
    minus, one = np.full((1, 1), -0.0), np.ones((1, 1))
    assert not np.signbit(reference.linear(minus, one)).any()
    assert not np.signbit(reference.bgrad(minus)).any()


def test_special_values_stay_in_their_row_and_do_not_warn():
    x = np.ones((4, 3), np.float32)
    x[0, 1], x[1, 2], x[2, 0] = math.nan, math.inf, -math.inf
    w = np.ones((2, 3), np.float32)
    w[1] = 0
    y = reference.linear(x, w)
    assert np.isnan(y[0]).all() and np.isnan(y[1:3, 1]).all()
    assert y[1, 0] == math.inf and y[2, 0] == -math.inf and y[3].tolist() == [3, 0]
    assert np.isnan(reference.linear(np.array([[math.inf, -math.inf]]), np.ones((1, 2))))
    big = np.full((1, 2), 65504, np.float16)
    assert np.isposinf(reference.linear(big, np.ones((1, 2), np.float16)))


def test_strided_and_read_only_operands():
    x, w = ints((6, 8), 0), ints((5, 8), 1)
    want = x @ w.T
    for view in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x[::-1].copy()[::-1]):
        view.flags.writeable = False
        assert (reference.linear(view, w) == want).all()
        assert (reference.wgrad(want, view) == want.T @ x).all()
    row = np.broadcast_to(x[:1], x.shape)
    assert (reference.linear(row, w) == want[:1]).all()
    planes = reference.planes(np.asfortranarray(x.astype(np.float32))[:, ::2], "bf16x6")
    assert (planes[0] == x[:, ::2]).all()


# ---- gradients ----


@pytest.mark.parametrize("op", ["dx", "dw", "db"])
def test_gradients_by_finite_differences_are_exact_on_integers(op):
    x, w, b, g = ints((3, 4), 0), ints((2, 4), 1), ints((2,), 2), ints((3, 2), 3)
    got = {
        "dx": reference.dgrad(g, w),
        "dw": reference.wgrad(g, x),
        "db": reference.bgrad(g),
    }[op]
    variable = {"dx": x, "dw": w, "db": b}[op]
    for index in np.ndindex(variable.shape):
        losses = []
        for step in (1, -1):
            variable[index] += step
            losses.append((g * reference.linear(x, w, b)).sum())
            variable[index] -= step
        assert got[index] == (losses[0] - losses[1]) / 2


def difference(f, z, h=2.0**-7):
    """f'(z) by two central differences, and a limit of their error for |f⁽⁵⁾| <= 30."""
    one, two = (f(z + h) - f(z - h)) / (2 * h), (f(z + 2 * h) - f(z - 2 * h)) / (4 * h)
    return (4 * one - two) / 3, h**4 / 30 * 4 * 30 + 40 * U64 * (1 + np.abs(z)) / h


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_gradients_through_an_activation(activation):
    rng = np.random.default_rng(0)
    x, w, b, g = (rng.standard_normal(s) for s in ((3, 4), (2, 4), (2,), (3, 2)))
    _, z = reference.gemm(x, w.T, bias=b)
    assert np.abs(z).min() > 0.1  # away from the kink of relu
    dz = reference.act_grad(g, z, activation)
    grads = reference.dgrad(dz, w), reference.wgrad(dz, x), reference.bgrad(dz)
    for variable, grad in zip((x, w, b), grads, strict=True):
        direction = rng.standard_normal(variable.shape)
        direction /= np.abs(direction).sum()

        def loss(t, variable=variable, direction=direction):
            moved = [v + t * direction if v is variable else v for v in (x, w, b)]
            return (g * reference.linear(*moved, activation=activation)).sum()

        # |d⁵ loss| <= |f⁽⁵⁾| · Σ|g| · max|x, w|⁵, and the rounding of about twenty terms
        slope, limit = difference(loss, 0.0, h=2.0**-9)
        size = max(np.abs(v).max() for v in (x, w))
        scale = np.abs(g).sum() * max(1.0, size) ** 5
        assert abs((grad * direction).sum() - slope) <= limit * scale


# ---- precisions of float32 operands, against bit-level and rational implementations ----


def hostile_float32(count: int, seed: int) -> np.ndarray:
    bits = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)
    ties = (bits[: count // 2] & np.uint32(0xFFFF8000)) ^ np.uint32(0x1000)
    x = np.concatenate([bits, ties, [0x7F7FFFFF, 0xFF7FFFFF, 0x7F7F8000, 1, 0x1000, 0]])
    x = x.astype(np.uint32).view(np.float32)
    return x[np.isfinite(x)]


def test_tf32_rounding():
    x = hostile_float32(400, 0)
    got = reference.round_tf32(x)
    for value, rounded in zip(x, got, strict=True):
        want = nearest(Fraction(float(value)), 11, -136, ties="away")
        if abs(want) >= 2**128:
            assert np.isinf(rounded)
        else:
            assert Fraction(float(rounded)) == want
    special = reference.round_tf32(np.array([math.nan, math.inf, -math.inf, -0.0], np.float32))
    assert np.isnan(special[0]) and special[1:3].tolist() == [math.inf, -math.inf]
    assert np.signbit(special[3])
    payloads = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(reference.round_tf32(payloads)).all()


def test_tf32x3_planes_leave_over_little():
    x = hostile_float32(400, 1)
    x = x[np.isfinite(reference.round_tf32(x)) & (np.abs(x) > 2.0**-100)]
    high, low = reference.planes(x, "tf32x3")
    assert (high == reference.round_tf32(x)).all() and (low == reference.round_tf32(x - high)).all()
    rest = np.abs(exact(x) - exact(high) - exact(low))
    assert (rest <= np.abs(exact(x)) * Fraction(2) ** -22).all()


def bf16_bits(x: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 on the bit pattern, ties to even."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def test_bf16_planes_add_up_to_the_operand():
    x = hostile_float32(2000, 2)
    planes = reference.planes(x, "bf16x6")
    first = bf16_bits(x)
    cut = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    first = np.where(np.isinf(first), cut, first)
    first = np.where((first == 0) & (x != 0), np.copysign(np.float32(2.0**-133), x), first)
    second = bf16_bits(x - first)
    for got, want in zip(planes, (first, second, bf16_bits(x - first - second)), strict=True):
        assert got.dtype == np.float32 and (got == want).all() and np.isfinite(got).all()
    inside = np.abs(x) >= 2.0**-100
    total = sum(exact(plane[inside]) for plane in planes)
    assert (total == exact(x[inside])).all()
    rest = np.abs(sum(plane.astype(np.float64) for plane in planes) - x)
    assert (rest <= 2.0**-134).all()


@pytest.mark.parametrize(
    "precision,order",
    [
        ("tf32", [(0, 0)]),
        ("tf32x3", [(1, 0), (0, 1), (0, 0)]),
        ("bf16x6", [(2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0)]),
    ],
)
def test_gemm_in_a_lower_precision_against_fractions(precision, order):
    rng = np.random.default_rng(5)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((2, 5), (5, 3)))
    got, _ = reference.gemm(a, b, precision=precision)
    pa, pb = ([exact(p) for p in reference.planes(v, precision)] for v in (a, b))
    want = sum(pa[i] @ pb[j] for i, j in order)
    gauge = np.abs(exact(a)) @ np.abs(exact(b)) * 2
    assert (np.abs(exact(got) - want) <= 40 * Fraction(U64) * gauge).all()
    plain, _ = reference.gemm(a, b)
    assert (got != plain).all()  # what is left out shows
    ieee, _ = reference.gemm(a, b, precision="ieee")
    assert (ieee == plain).all()


SPECIALS = [0.0, -0.0, 1.0, -1.5, 2.0**-149, -(2.0**-134), 3.4028234e38, -3.4e38, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("precision", ["tf32x3", "bf16x6"])
def test_splits_have_inf_and_nan_where_ieee_has_them(precision):
    """Every pair of special values: the product is infinite, of the same sign, or NaN in the same places."""
    a = np.array(SPECIALS, np.float32)[:, None]
    with np.errstate(all="ignore"):
        want = a.astype(np.float64) @ a.T.astype(np.float64)
    got, _ = reference.gemm(a, a.T, precision=precision)
    assert (np.isnan(got) == np.isnan(want)).all()
    assert (np.isinf(got) == np.isinf(want)).all() and (got[np.isinf(got)] == want[np.isinf(want)]).all()
    row = np.array([[math.inf, 2.0, -0.0]], np.float32)  # a finite term beside an infinite one does not show
    assert reference.gemm(row, np.full((3, 1), -3.0, np.float32), precision=precision)[0] == -math.inf


@pytest.mark.parametrize("precision", ["tf32x3", "bf16x6"])
def test_planes_of_finite_numbers_are_finite_and_keep_their_sign(precision):
    x = hostile_float32(2000, 3)
    planes = reference.planes(x, precision)
    assert all(np.isfinite(plane).all() for plane in planes)
    assert ((planes[0] == 0) == (x == 0)).all() and (np.signbit(planes[0]) == np.signbit(x)).all()
    smallest = 2.0**-134 if precision == "bf16x6" else 2.0**-137
    rest = np.abs(sum(plane.astype(np.float64) for plane in planes) - x)
    assert (rest <= np.maximum(smallest, np.abs(x.astype(np.float64)) * 2.0**-22)).all()


def test_an_infinite_operand_of_tf32_stays_infinite():
    a, b = np.array([[math.inf]], np.float32), np.ones((1, 1), np.float32)
    assert reference.gemm(a, b, precision="tf32")[0][0, 0] == math.inf


def test_an_unknown_activation_or_precision_is_refused():
    one = np.ones((1, 1), np.float32)
    for call in (activate, activation_derivative):
        with pytest.raises(ValueError, match=r"gelu_tanh.*'tanh'"):
            call(one, "tanh")
    with pytest.raises(ValueError, match=r"bf16x6.*'tf64'"):
        reference.gemm(one, one, precision="tf64")
    with pytest.raises(ValueError, match="float32 operands, got float16"):
        reference.gemm(one.astype(np.float16), one.astype(np.float16), precision="tf32")


# ---- the file itself ----


def test_the_reference_imports_numpy_alone():
    tree = ast.parse(Path(reference.__file__).read_text(encoding="utf-8"))
    names = itertools.chain.from_iterable(
        [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    )
    third_party = {name.split(".")[0] for name in names} - {"__future__", "math", "typing"}
    assert third_party == {"numpy", "ml_dtypes"}
    top_level = [ast.unparse(node) for node in tree.body]
    assert not any("import ml_dtypes" in line.split("\n")[0] for line in top_level)
