"""The a-priori bounds: right kernels stay below them and wrong ones do not.

The right kernels are simulated here, rounding by rounding: float32 FMA chains and truncating
tensor-core steps in the canonical order of reduction.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gpulinear import reference, testing
from gpulinear.config import PROMOTE
from gpulinear.reference import round_to

BF16 = np.dtype(ml_dtypes.bfloat16)
U32 = 2.0**-24


# ---- kernels, simulated ----


def fma32(a, b, c):
    """float32 a·b + c rounded once: a float64 sum rounded to odd, then to float32."""
    product = a.astype(np.float64) * b.astype(np.float64)  # exact
    c = c.astype(np.float64)
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    even = (total.view(np.int64) & 1) == 0
    away = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & even, away, total).astype(np.float32)


def fma_kernel(a, b, segment, *, start=None, bias=None, out="float32"):
    """The canonical order: chains of `segment` elements, their sums added in float32, ascending."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    zero = np.zeros((a.shape[0], b.shape[1]), np.float32)
    total = None if start is None else start.astype(np.float32)
    for first in range(0, a.shape[1], segment):
        chain = zero
        for k in range(first, min(first + segment, a.shape[1])):
            chain = fma32(a[:, k : k + 1] + zero, b[k : k + 1] + zero, chain)
        total = chain if total is None else total + chain
    total = zero if total is None else total
    total = total if bias is None else total + bias.astype(np.float32)
    return round_to(total.astype(np.float64), out)


def toward_zero(x, bits):
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.trunc(np.ldexp(mantissa, bits)), exponent - bits)


def tensor_core_step(products, accumulator, fraction):
    """Align to the largest exponent, cut `fraction` bits below it, add, round toward zero."""
    terms = np.concatenate([products, accumulator[..., None]], axis=-1)
    largest = np.frexp(np.abs(terms).max(axis=-1, keepdims=True))[1] - 1
    cut = np.ldexp(np.trunc(np.ldexp(terms, fraction - largest)), largest - fraction)
    return toward_zero(cut.sum(axis=-1), 24)


def tensor_core_kernel(pairs, p, fraction, segment, promote=None):
    """Chains of steps of p products over the given pairs of planes, in the canonical order."""
    k = pairs[0][0].shape[1]
    total = None
    for first in range(0, k, segment):
        last = min(first + segment, k)
        partial = None
        for low in range(first, last, promote or segment):
            chain = np.zeros((pairs[0][0].shape[0], pairs[0][1].shape[1]))
            for step in range(low, min(low + (promote or segment), last), p):
                part = slice(step, min(step + p, last))
                for a, b in pairs:
                    products = a[:, None, part] * b.T[None, :, part]
                    chain = tensor_core_step(products, chain, fraction)
            chain = chain.astype(np.float32)
            partial = chain if partial is None else partial + chain
        total = partial if total is None else total + partial
    return total


def operands(fill, m, n, k, dtype, seed=0):
    if fill == "cancelling":
        return testing.cancelling(m, n, k + k % 2, dtype, seed)
    make = testing.FILLS[fill]
    return make((m, k), dtype, seed), make((k, n), dtype, seed + 1)


FILLS = [*testing.FILLS, "cancelling"]
SIZES = [(5, 3, 1), (4, 4, 2), (7, 5, 63), (5, 6, 64), (6, 5, 65), (8, 9, 257)]


# ---- right kernels are within the bound ----


def ratio_of(got, a, b, how, **options):
    exact, _ = reference.gemm(
        a, b, **{k: v for k, v in options.items() if k in ("bias", "accumulate_into", "precision")}
    )
    bound = testing.gemm_bound(a, b, how, out_dtype=got.dtype, **options)
    return testing.error_ratio(got, exact, bound)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("m,n,k", SIZES)
def test_an_fma_chain_is_within_the_bound(fill, m, n, k):
    a, b = operands(fill, m, n, k, "float32", seed=k)
    for segment in (16, 1024):
        got = fma_kernel(a, b, segment)
        assert ratio_of(got, a, b, testing.fma("float32", segment)) <= 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("out", ["same", "float32"])
@pytest.mark.parametrize("fill", FILLS)
def test_sixteen_bit_chains_with_bias_and_accumulation_are_within_the_bound(dtype, out, fill):
    m, n, k = 6, 5, 130
    out = dtype if out == "same" else out
    a, b = operands(fill, m, n, k, dtype)
    bias = testing.normal((n,), "float32", 7)
    start = testing.normal((m, n), out, 8)
    how = testing.fma(dtype, 32)
    got = fma_kernel(a, b, 32, bias=bias, out=out)
    assert ratio_of(got, a, b, how, bias=bias) <= 1
    got = fma_kernel(a, b, 32, start=start, out=out)
    assert ratio_of(got, a, b, how, accumulate_into=start) <= 1


def test_the_bound_is_not_much_above_the_worst_case():
    """A chain that loses half a unit at every step: the bound cannot be far from it."""
    k = 512
    a = np.ones((1, k), np.float32)
    b = np.full((k, 1), 2.0**-24 * (1 + 2.0**-20), np.float32)
    b[0] = 1
    b[1:] *= np.float32(0.999)  # just below half a unit of 1: every addition is lost
    got = fma_kernel(a, b, 1024)
    assert got[0, 0] == 1
    assert 0.99 < ratio_of(got, a, b, testing.fma("float32", 1024)) <= 1


def test_subnormals_are_exact_or_within_one_rounding_each():
    a = testing.subnormals((4, 40), "float32", 0)
    b = testing.normal((40, 3), "float32", 1)
    got = fma_kernel(a, b, 16)
    assert ratio_of(got, a, b, testing.fma("float32", 16)) <= 1
    flushed = np.zeros_like(got)
    assert ratio_of(flushed, a, b, testing.fma("float32", 16)) > 1


def test_products_below_the_smallest_number_may_vanish():
    a = np.array([[2.0**-149, 3 * 2.0**-149]], np.float32).T
    b = np.array([[0.25, 0.75]], np.float32)
    got = fma_kernel(a, b, 16)
    assert (got[0] == [0, 2.0**-149]).all()
    assert ratio_of(got, a, b, testing.fma("float32", 16)) <= 1
    assert ratio_of(got + np.float32(2.0**-146), a, b, testing.fma("float32", 16)) > 1


@pytest.mark.parametrize("name", ["bias", "accumulate_into"])
def test_the_second_rounding_counts_and_not_a_third(name):
    """One product and one addition, over many elements: the largest error is near the bound."""
    a, b = operands("uniform", 300, 300, 1, "float32")
    other = testing.uniform((300, 300), "float32", 5)
    if name == "bias":
        other = other[0]
        got = fma_kernel(a, b, 16, bias=other)
    else:
        got = fma_kernel(a, b, 16, start=other)
    ratio = ratio_of(got, a, b, testing.fma("float32", 16), **{name: other})
    assert 0.8 < ratio <= 1


def test_float64_products_are_within_their_bound():
    for fill in FILLS:
        a, b = operands(fill, 6, 5, 200, "float64")
        how = testing.fma("float64", 64)
        wide = a.astype(np.longdouble) @ b.astype(np.longdouble)
        assert ratio_of(wide.astype(np.float64), a, b, how) <= 1
        assert ratio_of(a @ b, a, b, testing.fma("float64", 1024)) <= 1
        float32 = (a.astype(np.float32) @ b.astype(np.float32)).astype(np.float64)
        assert ratio_of(float32, a, b, how) > 1
        exact, _ = reference.gemm(a, b)
        gauge = np.abs(a) @ np.abs(b)
        assert ratio_of(exact + 1e-13 * gauge, a, b, how) > 1


@pytest.mark.parametrize("arch,p,fraction", [("sm_90a", 16, 25), ("sm_80", 8, 24), ("sm_89", 8, 24)])
@pytest.mark.parametrize("fill", FILLS)
def test_truncating_tensor_cores_are_within_the_bound(arch, p, fraction, fill):
    a, b = operands(fill, 4, 3, 300, "float16")
    pairs = reference.products(a, b, None)
    for segment in (64, 4096):
        got = tensor_core_kernel(pairs, p, fraction, segment)
        ratio = ratio_of(got, a, b, testing.tensor_core(arch, segment=segment))
        assert ratio <= 1
        if fill == "uniform" and segment == 4096:
            assert ratio > 0.08  # the truncations all go one way, so the bound is not idle


@pytest.mark.parametrize("precision", ["tf32", "tf32x3", "bf16x6"])
@pytest.mark.parametrize("fill", FILLS)
def test_lower_precisions_are_within_both_bounds(precision, fill):
    a, b = operands(fill, 4, 3, 200, "float32")
    p = 16 if precision == "bf16x6" else 8
    how = testing.tensor_core("sm_90a", precision, segment=128, promote=32)
    promote = how.promote
    assert promote == (None if precision == "tf32" else 32)
    pairs = reference.products(a, b, precision)
    got = tensor_core_kernel(pairs, p, 25, 128, promote)
    assert ratio_of(got, a, b, how, precision=precision) <= 1
    rep = testing.REPRESENTATION[precision]
    assert ratio_of(got, a, b, how, representation=rep) <= 1


@pytest.mark.parametrize("precision", ["tf32", "tf32x3", "bf16x6"])
def test_representation_alone_is_within_its_limit_and_not_far_below(precision):
    a = np.full((1, 1), 1 + 2.0**-11 + 2.0**-22 + 2.0**-23, np.float32)
    worst = 0.0
    for fill in FILLS:
        x, y = operands(fill, 30, 30, 8, "float32")
        for left, right in ((x, y), (a, a)):
            exact, _ = reference.gemm(left, right)
            split, _ = reference.gemm(left, right, precision=precision)
            gauge = np.abs(left.astype(np.float64)) @ np.abs(right.astype(np.float64))
            found = (np.abs(split - exact) / gauge).max()
            worst = max(worst, found / testing.REPRESENTATION[precision])
    assert 0.01 < worst <= 1


def test_unknown_adders_get_three_units_a_product():
    assert testing.tensor_core("sm_75").chain_units(64) == 3 * 64
    assert testing.tensor_core("sm_90a").chain_units(64) == 10.5 * 4
    assert testing.tensor_core("sm_80", "tf32").chain_units(64) == 7 * 16


def test_units_follow_the_canonical_order():
    how = testing.fma("float32", 1024)
    assert [how.chain_units(k) for k in (0, 1, 1024, 5000)] == [0, 1, 1024, 1024]
    assert [how.additions(k, False) for k in (0, 1, 1024, 1025, 5000)] == [0, 0, 0, 1, 4]
    assert [how.additions(k, True) for k in (0, 1, 1024, 1025)] == [0, 1, 1, 2]
    split = testing.tensor_core("sm_90a", "bf16x6")
    assert (split.segment, split.promote, split.passes) == (4096, PROMOTE, 6)
    assert split.chain_units(4096) == 10.5 * 4 * 6 + 63


# ---- activations and their gradients ----


def act32(z, activation):
    """float32 z times a factor that is right to two units."""
    factor = reference.activation_factor(z, activation)[0].astype(np.float32)
    return np.where(z <= 0, 0, z) if activation == "relu" else np.maximum(z, -1e30) * factor


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activated_results_are_within_the_bound(activation):
    a, b = operands("normal", 20, 21, 50, "float32")
    bias = testing.wide((21,), "float32", 3, exponent=4)
    z = fma_kernel(a, b, 16, bias=bias)
    exact, _ = reference.gemm(a, b, bias=bias, activation=activation)
    options = {"bias": bias, "activation": activation}
    bound = testing.gemm_bound(a, b, testing.fma("float32", 16), out_dtype="float32", **options)
    assert testing.error_ratio(act32(z, activation), exact, bound) <= 1
    for other in {None, *reference.ACTIVATIONS} - {activation}:
        wrong = z if other is None else act32(z, other)
        assert testing.error_ratio(wrong.astype(np.float32), exact, bound) > 1, other


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_a_factor_may_be_off_by_the_ulps_given(activation):
    bias = testing.wide((500,), "float32", 0, exponent=2)
    bias = bias[np.abs(bias) < 6]
    a, b = np.zeros((1, 0), np.float32), np.zeros((0, len(bias)), np.float32)
    exact, _ = reference.gemm(a, b, bias=bias, activation=activation)
    how = testing.fma("float32", 16)

    def ratio(off, **options):
        bound = testing.gemm_bound(a, b, how, out_dtype="float32", bias=bias, activation=activation, **options)
        got = (exact * (1 + off * U32)).astype(np.float32)
        return testing.error_ratio(got, exact, bound)

    assert ratio(0) <= 1 and ratio(30) <= 1
    assert ratio(30, activation_ulps=4) > 1 and ratio(200) > 1


@pytest.mark.parametrize("activation", [None, *reference.ACTIVATIONS])
def test_infinite_operands_are_judged_by_their_limits(activation):
    a, b = operands("uniform", 4, 3, 5, "float32")
    a[0, 0], a[1, 1], a[2, 2] = np.inf, -np.inf, np.nan
    how = testing.fma("float32", 16)
    exact, z = reference.gemm(a, b, activation=activation)
    bound = testing.gemm_bound(a, b, how, out_dtype="float32", activation=activation)
    got = z.astype(np.float32) if activation is None else act32(z, activation)
    testing.assert_within(got.astype(np.float32), exact, bound)
    assert testing.error_ratio(np.nan_to_num(got.astype(np.float32)), exact, bound) > 1
    if activation is not None:
        wrong = np.where(z == -np.inf, 0.5, got).astype(np.float32)
        assert testing.error_ratio(wrong, exact, bound) > 1


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_no_slope_exceeds_the_lipschitz_constant(activation):
    z = np.linspace(-20, 20, 400001)
    slope = np.abs(reference.activation_derivative(z, activation)).max()
    assert 0.99 < slope / testing.bounds.LIPSCHITZ[activation] <= 1


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("activation", [None, *reference.ACTIVATIONS])
def test_activation_gradients_and_what_follows_are_within_their_bounds(dtype, activation):
    dy, z = testing.normal((40, 30), dtype, 0), testing.wide((40, 30), dtype, 1, exponent=3)
    z[0, :3] = [0, np.inf, -np.inf]
    work = "float64" if dtype == "float64" else "float32"
    slope = reference.activation_derivative(z, activation).astype(work)
    dz = round_to((dy.astype(work) * slope).astype(np.float64), dtype)
    exact = reference.act_grad(dy, z, activation)
    error = testing.act_grad_bound(dy, z, activation, out_dtype=dtype)
    testing.assert_within(dz, exact, error, dtype=dtype)
    if activation is not None:
        wrong = reference.act_grad(dy, z, None)
        assert testing.error_ratio(round_to(wrong, dtype), exact, error) > 1
    if dtype == "float64":
        return
    weight = testing.normal((30, 8), dtype, 2)
    how = testing.fma(dtype, 16)
    dx = fma_kernel(dz, weight, 16, out=dtype)
    bound = testing.gemm_bound(exact, weight, how, out_dtype=dtype, a_error=error)
    testing.assert_within(dx, exact @ weight.astype(np.float64), bound)
    dw = fma_kernel(dz.T, dy, 16)
    bound = testing.gemm_bound(dy.T.astype(np.float64), exact, how, out_dtype="float32", b_error=error)
    testing.assert_within(dw.T, dy.T.astype(np.float64) @ exact, bound)
    db = fma_kernel(np.ones((1, 40), np.float32), dz, 16)[0]
    bound = testing.column_sum_bound(exact, how, out_dtype="float32", x_error=error)
    testing.assert_within(db, exact.sum(axis=0), bound)


def test_column_sums_are_within_their_bound():
    for fill in testing.FILLS:
        x = testing.FILLS[fill]((333, 7), "float32", 0)
        start = testing.normal((7,), "float32", 1)
        got = fma_kernel(np.ones((1, 333), np.float32), x, 64, start=start[None])[0]
        exact = reference.column_sum(x, accumulate_into=start)
        how = testing.fma("float32", 64)
        bound = testing.column_sum_bound(x, how, out_dtype="float32", accumulate_into=start)
        testing.assert_within(got, exact, bound)
        missing = reference.column_sum(x[:-1], accumulate_into=start).astype(np.float32)
        assert testing.error_ratio(missing, exact, bound) > 1


# ---- wrong kernels are not ----


def wrong_results(a, b, bias, start):
    """(name, what it returns, the arguments of the problem it was meant to solve)."""
    segment = 32
    right = fma_kernel(a, b, segment)
    tf32 = fma_kernel(reference.round_tf32(a), reference.round_tf32(b), segment)
    yield "operands rounded to TF32", tf32, {}
    bf16 = fma_kernel(a.astype(BF16), b.astype(BF16), segment)
    yield "operands rounded to bfloat16", bf16, {}
    yield "last term dropped", fma_kernel(a[:, :-1], b[:-1], segment), {}
    yield "first term twice", fma_kernel(np.c_[a, a[:, :1]], np.r_[b, b[:1]], segment), {}
    corner = right.copy()
    corner[-4:, -4:] = 0
    yield "corner tile not written", corner, {}
    unwritten = right.copy()
    unwritten[-1, -1] = np.nan
    yield "one element not written", unwritten, {}
    yield "row swapped", right[[1, 0, *range(2, len(right))]], {}
    yield "bias left out", right, {"bias": bias}
    yield "bias swapped", fma_kernel(a, b, segment, bias=np.roll(bias, 1)), {"bias": bias}
    yield "bias twice", fma_kernel(a, b, segment, bias=2 * bias), {"bias": bias}
    yield "not accumulated", right, {"accumulate_into": start}
    twice = fma_kernel(a, b, segment, start=right + start)
    yield "accumulated twice", twice, {"accumulate_into": start}
    rounded_total = right.astype(np.float16).astype(np.float32)
    yield "float16 total", rounded_total, {}
    yield "sign", -right, {}


@pytest.mark.parametrize("k", [8, 64, 257])
def test_wrong_kernels_exceed_the_bound(k):
    a, b = operands("normal", 12, 11, k, "float32")
    bias, start = testing.normal((11,), "float32", 5), testing.normal((12, 11), "float32", 6)
    how = testing.fma("float32", 32)
    for name, got, arguments in wrong_results(a, b, bias, start):
        assert ratio_of(got, a, b, how, **arguments) > 1, name


@pytest.mark.parametrize("dtype,out", [("float16", "float16"), ("bfloat16", "bfloat16")])
def test_a_truncated_output_exceeds_the_bound(dtype, out):
    a, b = operands("uniform", 40, 40, 7, dtype)
    exact, _ = reference.gemm(a, b)
    bits = 11 if dtype == "float16" else 8
    cut = round_to(toward_zero(exact, bits), out)
    assert ratio_of(cut, a, b, testing.fma(dtype, 1024)) > 1


def test_a_relative_test_would_refuse_right_kernels_where_the_bound_does_not():
    a, b = testing.cancelling(6, 6, 400, "float32", 0, delta=2.0**-18)
    exact, _ = reference.gemm(a, b)
    got = fma_kernel(a, b, 1024)
    assert (np.abs(got - exact) / np.abs(exact)).max() > 1e-3
    assert ratio_of(got, a, b, testing.fma("float32", 1024)) <= 1
