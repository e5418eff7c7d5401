"""Comparisons, operands, poisoned buffers, views and the list of problems: the tests' own tools."""

from __future__ import annotations

import math
from itertools import combinations

import ml_dtypes
import numpy as np
import pytest

from gpulinear import reference, testing
from gpulinear.reference import round_to

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = ["float64", "float32", "float16", "bfloat16"]


# ---- comparisons ----


def ratio(got, exact, bound, dtype="float32", **options):
    got = round_to(np.array(got, np.float64), dtype)
    return testing.error_ratio(got, np.array(exact, float), np.array(bound, float), **options)


def test_error_ratio_is_the_largest_quotient():
    assert ratio([1, 2, 3], [1, 2.5, 3.25], [1, 1, 0.25]) == 1
    assert ratio([1.0], [1.0], [0.0]) == 0
    assert ratio([1.0], [1.5], [0.0]) == math.inf
    assert testing.error_ratio(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3))) == 0


def test_assert_within_accepts_the_bound_and_nothing_above():
    one = np.ones(3)
    testing.assert_within(one, one + 1, one)
    with pytest.raises(AssertionError, match=r"ratio 1\.125"):
        testing.assert_within(one, one + 1.125, one)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_special_values_must_agree(bad):
    assert ratio([bad], [bad], [math.nan]) == 0
    assert ratio([bad], [1.0], [1.0]) == math.inf
    assert ratio([1.0], [bad], [1.0]) == math.inf
    assert ratio([-bad], [bad], [1.0]) == (0 if math.isnan(bad) else math.inf)
    # neither may a bound that says nothing let anything pass
    assert ratio([1.0], [1.0], [bad]) == math.inf


def test_overflow_of_the_output_is_right_where_rounding_gives_it():
    assert ratio([math.inf], [70000.0], [0.0], "float16") == 0
    assert ratio([math.inf], [65519.0], [1.0], "float16") == 0  # 65520 rounds to Inf
    assert ratio([math.inf], [65519.0], [0.5], "float16") == math.inf
    assert ratio([-math.inf], [65520.0], [1.0], "float16") == math.inf
    assert ratio([65504.0], [70000.0], [35.0], "float16") > 1


def test_shapes_and_dtypes_must_agree():
    one, zero = np.ones((2, 3)), np.zeros((2, 3))
    assert testing.error_ratio(one, one, zero, dtype="float64") == 0
    assert testing.error_ratio(one, one, zero, dtype="float32") == math.inf
    assert testing.error_ratio(one[:1], one, zero) == math.inf
    assert testing.error_ratio(one, one, zero[:, :1]) == math.inf
    assert testing.error_ratio(one.astype(int), one, zero) == math.inf
    with pytest.raises(AssertionError, match=r"w: shape is \(1, 3\)"):
        testing.assert_within(one[:1], one, zero, what="w")
    with pytest.raises(AssertionError, match="dtype is float64, expected bfloat16"):
        testing.assert_within(one, one, zero, dtype=BF16)
    assert testing.error_ratio(one.astype(BF16), one, zero, dtype="bfloat16") == 0


def test_the_message_names_the_worst_element():
    got = np.ones((3, 4))
    got[1, 2], got[2, 3] = 2, np.nan
    found = testing.worst(got, np.ones((3, 4)), np.ones((3, 4)))
    assert found.index == (2, 3) and found.ratio == math.inf
    with pytest.raises(AssertionError, match=r"dw: 2 of 12 elements .* at \(2, 3\): got nan"):
        testing.assert_within(got, np.ones((3, 4)), np.full((3, 4), 0.5), what="dw")


def test_same_bits_prints_both_patterns():
    a = np.ones((2, 3), np.float32)
    testing.assert_same_bits(a, a.copy())
    testing.assert_same_bits(np.asfortranarray(a), a)
    b = a.copy()
    b[1, 0], b[1, 2] = np.nextafter(np.float32(1), np.float32(2)), 0
    with pytest.raises(AssertionError, match=r"2 of 6 .* at \(1, 0\): got 0x3f800000 .* 0x3f800001"):
        testing.assert_same_bits(a, b)
    for x, y in ((0.0, -0.0), (math.nan, -math.nan)):
        with pytest.raises(AssertionError):
            testing.assert_same_bits(np.array([x]), np.array([y]))
    with pytest.raises(AssertionError, match="float16"):
        testing.assert_same_bits(a.astype(np.float16), a)
    with pytest.raises(AssertionError, match=r"\(3,\)"):
        testing.assert_same_bits(a, a[0])
    testing.assert_same_bits(np.full(2, np.nan, BF16), np.full(2, np.nan, BF16))


# ---- operands ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [*testing.FILLS.values(), testing.integers, testing.subnormals])
def test_fills_are_seeded_and_of_the_dtype(make, dtype):
    x, same, other = make((9, 8), dtype, 1), make((9, 8), dtype, 1), make((9, 8), dtype, 2)
    assert x.dtype.name == dtype and x.shape == (9, 8)
    testing.assert_same_bits(x, same)
    assert np.isfinite(x.astype(float)).all() and (x != other).any()
    assert make((0, 3), dtype, 0).shape == (0, 3)


def test_integers_are_small_and_their_products_exact():
    x = testing.integers((50, 40), "float32", 0)
    assert set(np.unique(x)) == {-2, -1, 0, 1, 2}
    exact, _ = reference.gemm(x, x.T)
    assert (x @ x.T == exact).all() and len(np.unique(exact)) > 50


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormals_are_subnormal(dtype):
    x = testing.subnormals((30, 30), dtype, 0).astype(np.float64)
    tiny = float(ml_dtypes.finfo(dtype).smallest_normal)
    assert (np.abs(x) < tiny).all() and np.count_nonzero(x) > 800


def test_wide_operands_are_wide():
    x = np.abs(testing.wide((100, 100), "float32", 0))
    assert x.max() / x.min() > 2.0**40
    assert np.isfinite(testing.wide((100, 100), "float16", 0).astype(float)).all()


def test_cancelling_operands_cancel():
    a, b = testing.cancelling(5, 4, 60, "float32", 0, delta=2.0**-10)
    exact, _ = reference.gemm(a, b)
    gauge = np.abs(a.astype(float)) @ np.abs(b.astype(float))
    assert (np.abs(exact) < 2.0**-9 * gauge).all() and (exact != 0).all()
    with pytest.raises(ValueError, match="even, got 3"):
        testing.cancelling(1, 1, 3, "float32", 0)


@pytest.mark.parametrize("k", [1, 2])
def test_a_precision_probe_is_exact_in_float32_and_wrong_in_every_lower_precision(k):
    a, b = testing.precision_probe(40, 30, k, 0)
    exact = a.astype(np.int64) @ b.astype(np.int64)
    assert (a % 2 == 1).all() and (b % 2 == 1).all() and a.min() > 2048 and exact.max() < 2**24
    assert (a @ b == exact).all()
    for lower in (reference.round_tf32, lambda x: x.astype(BF16).astype(np.float32)):
        wrong, _ = reference.gemm(lower(a), lower(b))
        assert (wrong == exact).mean() < 0.01
    with pytest.raises(ValueError, match="k must be 1 or 2"):
        testing.precision_probe(1, 1, 3, 0)


@pytest.mark.parametrize("dtype,sticks_at", [("float16", 2048), ("bfloat16", 256)])
def test_an_accumulator_probe_counts_past_a_narrow_accumulator(dtype, sticks_at):
    a, b = testing.accumulator_probe(2, 3, 65536, dtype)
    exact, _ = reference.gemm(a, b)
    assert (exact == 4096).all()
    total = np.zeros((), a.dtype)
    for _ in range(4096):
        total = (total + a[0, 0] * b[0, 0]).astype(a.dtype)
    assert total == sticks_at


def test_sprinkled_values_sit_at_tile_corners():
    x = np.ones((9, 17))
    y = testing.sprinkled(x, (8, 16), 0, count=100)
    places = set(zip(*np.nonzero(~np.isfinite(y)), strict=True))
    assert places == {(i, j) for i in (0, 7, 8) for j in (0, 15, 16)}
    assert np.isnan(y).any() and (y == np.inf).any() and (y == -np.inf).any()
    assert np.isfinite(x).all()
    assert np.count_nonzero(~np.isfinite(testing.sprinkled(x, (8, 16), 1))) == 4


# ---- poisoned buffers ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (2, 3, 4), (0, 5), (4, 0)])
@pytest.mark.parametrize("offset,row_pad", [(0, 0), (1, 0), (3, 5)])
def test_a_poisoned_array_is_nan_inside_guards(dtype, shape, offset, row_pad):
    buffer = testing.poisoned(shape, dtype, offset=offset, row_pad=row_pad)
    array = buffer.array
    assert array.shape == shape and array.dtype.name == dtype
    assert np.isnan(array.astype(float)).all()
    assert array.ctypes.data % 256 == offset * array.itemsize or array.size == 0
    if len(shape) > 1 and array.size:
        assert array.strides[-2] == (shape[-1] + row_pad) * array.itemsize
    assert buffer.owned.sum() == array.nbytes
    array[...] = 1
    buffer.check_guards()
    assert (array == 1).all()
    places = np.flatnonzero(~buffer.owned)
    if array.size:
        inside = np.flatnonzero(buffer.owned)
        assert inside[0] >= 256 and len(buffer.raw) - inside[-1] > 256
        gaps = [p for p in places if inside[0] < p < inside[-1]]
        assert bool(gaps) == (row_pad > 0 and len(shape) > 1)
        places = [inside[0] - 1, inside[-1] + 1, *gaps[:1], *gaps[-1:]]
    for place in places[:4]:
        buffer.raw[place] ^= 1
        with pytest.raises(AssertionError, match="1 guard bytes written"):
            buffer.check_guards()
        buffer.raw[place] ^= 1


# ---- views ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (0, 3), (3, 0), (16, 32)])
@pytest.mark.parametrize("name", testing.VIEWS)
def test_a_view_has_the_values_and_nan_around_them(name, shape, dtype, monkeypatch):
    buffers = []

    def record(*args, **options):
        buffers.append(testing.poisoned(*args, **options))
        return buffers[-1]

    monkeypatch.setattr(testing.operands, "poisoned", record)
    x = testing.normal(shape, dtype, 0)
    view = testing.VIEWS[name](x, np)
    testing.assert_same_bits(view, x)
    (buffer,) = buffers
    buffer.check_guards()
    assert np.may_share_memory(view, buffer.raw) or x.size == 0
    values = buffer.array.astype(float)
    assert np.count_nonzero(~np.isnan(values)) == x.size  # the rest is poison


def test_the_views_are_what_their_names_say():
    x = testing.normal((6, 10), "float32", 0)
    strides = {name: make(x, np).strides for name, make in testing.VIEWS.items()}
    assert strides == {
        "contiguous": (40, 4),
        "transposed": (4, 24),
        "row_sliced": (40, 4),
        "column_sliced": (68, 4),
        "padded": (128, 4),
        "rows_reversed": (-40, 4),
        "both_reversed": (-40, -4),
        "rows_stepped": (80, 4),
        "columns_stepped": (80, 8),
        "misaligned": (40, 4),
        "misaligned_three": (40, 4),
    }
    address = {name: make(x, np).ctypes.data % 16 for name, make in testing.VIEWS.items()}
    assert address["contiguous"] == address["padded"] == 0
    assert address["misaligned"] == 4 and address["misaligned_three"] == 12


def test_broadcast_repeats_with_stride_zero():
    x = testing.normal((6, 10), "bfloat16", 0)
    rows, cols = testing.broadcast(x, 0), testing.broadcast(x, 1)
    assert rows.strides == (0, 2) and (rows == x[:1]).all() and rows.shape == x.shape
    assert cols.strides[1] == 0 and (cols == x[:, :1]).all() and not cols.flags.writeable


# ---- sizes and problems ----


def test_edge_sizes():
    assert testing.edge_sizes(1) == (0, 1, 2, 3)
    assert testing.edge_sizes(8) == (0, 1, 7, 8, 9, 17)
    assert testing.edge_sizes(32) == (0, 1, 31, 32, 33, 67)
    assert testing.edge_sizes(64) == (0, 1, 61, 63, 64, 65, 131)
    with pytest.raises(ValueError, match="got 0"):
        testing.edge_sizes(0)


def test_every_pair_of_choices_meets():
    views = ("contiguous", "transposed", "misaligned")
    precisions = ("ieee", "tf32")
    cases = testing.enumerate_problems((16, 32, 8), views=views, precisions=precisions)
    assert cases == testing.enumerate_problems((16, 32, 8), views=views, precisions=precisions)
    assert len(cases) < 400 and len({str(case) for case in cases}) == len(set(cases))
    sizes = dict(zip("mnk", map(testing.edge_sizes, (16, 32, 8)), strict=True))
    for op in ("linear", "dgrad", "wgrad", "bgrad", "act_grad"):
        fields = {
            "m": (1,) if op == "bgrad" else sizes["m"],
            "n": sizes["n"],
            "k": (1,) if op == "act_grad" else sizes["k"],
            "dtype": DTYPES,
            "a_view": views,
        }
        if op in ("linear", "act_grad"):
            fields["activation"] = reference.ACTIVATIONS
        if op == "linear":
            fields["bias"] = (False, True)
        if op in ("wgrad", "bgrad"):
            fields["accumulate"] = (False, True)
        if op != "bgrad":
            fields["b_view"] = views
        mine = [case for case in cases if case.op == op]
        assert len(mine) < 110
        for a, b in combinations(fields, 2):
            seen = {(getattr(case, a), getattr(case, b)) for case in mine}
            missing = [(u, v) for u in fields[a] for v in fields[b] if (u, v) not in seen]
            assert not missing, (op, a, b, missing)


def test_the_problems_are_legal_and_bounded():
    cases = testing.enumerate_problems((32, 32, 8), precisions=("ieee", "bf16x6"))
    assert {case.precision for case in cases} == {None, "ieee", "bf16x6"}
    for case in cases:
        gemm = case.op in ("linear", "dgrad", "wgrad")
        assert (case.precision is not None) == (gemm and case.dtype == "float32")
        assert not case.bias or case.op == "linear"
        assert case.activation is None or case.op in ("linear", "act_grad")
        assert not case.accumulate or case.op in ("wgrad", "bgrad")
        narrow = case.dtype in ("float16", "bfloat16")
        assert case.out_dtype == case.dtype or (narrow and case.out_dtype == "float32")
        assert case.m * case.n * case.k <= 200_000
    small = testing.enumerate_problems((32, 32, 8), ops=("linear",), max_products=1000)
    assert small and all(case.m * case.n * case.k <= 1000 for case in small)
    only = testing.enumerate_problems((8, 8, 8), dtypes=("float64",), ops=("dgrad",))
    assert {case.dtype for case in only} == {"float64"} and only[-1].m * only[-1].k > 60
