"""The shipped kernels, run: exact integers around the tile edges, bounds, poison, replays, and the numeric contract.

They run in the PTX emulator with every sanitizer on: a finding is an error in any of these tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpulinear as gl
from gpulinear import check, gemm, reference, testing
from gpulinear.config import SEGMENT, SIMT_TILES
from gpulinear.device import DeviceSpec
from gpulinear.plan import Options
from gpulinear.problem import accumulator_dtype

Array = np.ndarray[Any, Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype("float32"), np.dtype("float64"), np.dtype("float16"), BF16]
F32 = np.dtype("float32")
ARCHS = ("sm_75", "sm_80", "sm_90a", "sm_120")
SMALL = "32x32x16/4x4"
SPEC = DeviceSpec.preset("sm_90a")
NAMES = {dtype: "bfloat16" if dtype == BF16 else dtype.name for dtype in DTYPES}


def simt(dtype: Any) -> AbstractContextManager[None]:
    """float64 through gemm_simt, also where it is planned on tensor cores (tests/test_mma_f64_run.py)."""
    return gemm.planning(Options(family="gemm_simt")) if dtype == np.dtype("float64") else nullcontext()


@pytest.fixture(autouse=True)
def emulator(compiled: None) -> Iterator[None]:
    with gl.host_backend("emulator", arch="sm_90a"):
        yield


def ints(*shape: int, dtype: Any = F32, seed: int = 0) -> Array:
    return testing.integers(shape, dtype, seed)


def f8(a: Array) -> Array:
    return a.astype(np.float64)


def check_exact(tokens: int, out: int, inner: int, dtype: np.dtype[Any]) -> None:
    x, w, dy = (
        ints(tokens, inner, dtype=dtype),
        ints(out, inner, dtype=dtype, seed=1),
        ints(tokens, out, dtype=dtype, seed=2),
    )
    testing.assert_same_bits(gl.linear(x, w), (f8(x) @ f8(w).T).astype(dtype))
    testing.assert_same_bits(gl.dgrad(dy, w), (f8(dy) @ f8(w)).astype(dtype))
    testing.assert_same_bits(gl.wgrad(dy, x), (f8(dy).T @ f8(x)).astype(dtype))
    testing.assert_same_bits(gl.bgrad(dy), f8(dy).sum(0).astype(dtype))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_integers_on_every_arch(dtype: np.dtype[Any], arch: str) -> None:
    with gl.host_backend("emulator", arch=arch), simt(dtype):
        check_exact(33, 31, 17, dtype)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 33, 5), (31, 1, 16), (32, 32, 32), (33, 65, 1), (3, 37, 131)], ids=str
)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_exact_integers_at_the_edges_of_tiles(dtype: np.dtype[Any], shape: tuple[int, int, int]) -> None:
    check_exact(*shape, dtype)


@pytest.mark.parametrize(
    ("dtype", "tile"),
    [(name, tile) for name, tiles in SIMT_TILES.items() for tile in tiles],
    ids=lambda v: v if isinstance(v, str) else f"{v.block_m}x{v.block_n}",
)
def test_every_tile_gives_the_same_bits(dtype: str, tile: Any) -> None:
    name = f"{tile.block_m}x{tile.block_n}x{tile.block_k}/{tile.thread_m}x{tile.thread_n}"
    x, w = testing.normal((35, 72), dtype, 0), testing.normal((36, 72), dtype, 1)
    dy = testing.normal((35, 36), dtype, 2)
    smallest = f"32x32x{tile.block_k}/4x4"
    calls: dict[str, Callable[[], Array]] = {
        "dgrad": lambda: gl.dgrad(dy, w),
        "wgrad": lambda: gl.wgrad(dy, x),
        "linear": lambda: gl.linear(x, w),
    }
    refused = {}
    if tile.thread_n == 16:
        refused["linear"] = "spills"  # over two K-major operands
    if tile.thread_m == 1:
        refused["wgrad"] = "K-major A"
    for op, call in calls.items():
        with gemm.planning(Options(family="gemm_simt", tile=smallest)):
            want = call()
        with gemm.planning(Options(family="gemm_simt", tile=name)):
            if op in refused:
                with pytest.raises(gl.BackendError, match=refused[op]):
                    call()
            else:
                testing.assert_same_bits(call(), want)


@pytest.mark.parametrize("schedule", ["warps", "random:0", "random:1", "random:2"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_every_schedule_gives_the_same_bits(dtype: Any, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = testing.normal((33, 50), dtype, 0), testing.normal((34, 50), dtype, 1)
    dy = testing.normal((33, 34), dtype, 2)

    def everything() -> list[Array]:
        grads = gl.linear_backward(dy, x, w)
        return [gl.linear(x, w), grads.dx, grads.dw, grads.db]

    lockstep = everything()
    monkeypatch.setenv("GPULINEAR_EMULATOR_SCHEDULE", schedule)
    for got, want in zip(everything(), lockstep, strict=True):
        testing.assert_same_bits(got, want)


@pytest.mark.parametrize("fill", ["normal", "wide", "subnormals"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_errors_stay_within_the_bound(dtype: np.dtype[Any], fill: str) -> None:
    make = getattr(testing, fill)
    x, w, dy = make((9, 77), dtype, 0), make((11, 77), dtype, 1), make((9, 11), dtype, 2)
    how = check.summation(NAMES[dtype], SPEC)
    with simt(dtype):
        results = (gl.linear(x, w), x, w.T), (gl.dgrad(dy, w), dy, w), (gl.wgrad(dy, x), dy.T, x)
    for got, a, b in results:
        testing.assert_within(got, f8(a) @ f8(b), testing.gemm_bound(a, b, how, out_dtype=dtype))


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("dtype", [F32, np.dtype("float64"), BF16], ids=str)
def test_activation_forward_and_backward(dtype: np.dtype[Any], activation: str) -> None:
    x, w, b = testing.normal((7, 20), dtype, 0), testing.normal((33, 20), dtype, 1), testing.normal((33,), dtype, 2)
    preact = np.empty((7, 33), dtype)
    with simt(dtype):
        y = gl.linear(x, w, b, activation=activation, preact_out=preact)
        testing.assert_same_bits(preact, gl.linear(x, w, b))
    how = check.summation(NAMES[dtype], SPEC)
    exact = f8(x) @ f8(w).T + f8(b)
    bound = testing.gemm_bound(x, w.T, how, out_dtype=dtype, bias=b, activation=activation)
    testing.assert_within(y, reference.activate(exact, activation), bound)
    dy = testing.normal((7, 33), dtype, 3)
    with simt(dtype):
        grads = gl.linear_backward(dy, x, w, activation=activation, preact=preact)
    dz = reference.act_grad(dy, preact, activation)
    off = testing.act_grad_bound(dy, preact, activation, out_dtype=dtype)  # what the stored dz may be off by
    testing.assert_within(grads.dx, dz @ f8(w), testing.gemm_bound(dz, w, how, out_dtype=dtype, a_error=off))
    testing.assert_within(grads.dw, dz.T @ f8(x), testing.gemm_bound(dz.T, x, how, out_dtype=dtype, a_error=off.T))
    sums = testing.fma(NAMES[dtype], SEGMENT["column_sum"])
    testing.assert_within(grads.db, dz.sum(axis=0), testing.column_sum_bound(dz, sums, out_dtype=dtype, x_error=off))


@pytest.mark.parametrize("view", testing.VIEWS)
def test_any_view_gives_what_the_copy_gives(view: str) -> None:
    make = testing.VIEWS[view]
    x, w, dy = ints(6, 36), ints(7, 36, seed=1), ints(6, 7, seed=2)
    vx, vw, vdy = (make(a, np) for a in (x, w, dy))
    testing.assert_same_bits(gl.linear(vx, vw), gl.linear(x, w))
    testing.assert_same_bits(gl.dgrad(vdy, vw), gl.dgrad(dy, w))
    testing.assert_same_bits(gl.wgrad(vdy, vx), gl.wgrad(dy, x))
    testing.assert_same_bits(gl.bgrad(vdy), gl.bgrad(dy))


def test_row_bits_do_not_depend_on_the_batch() -> None:  # D2
    w = testing.normal((40, 52), F32, 0)
    row = testing.normal((1, 52), F32, 1)
    alone = gl.linear(row, w)
    for tokens in (2, 31, 33, 70):
        for place in {0, tokens // 2, tokens - 1}:
            for neighbour in (np.nan, np.inf, 3.0):
                x = np.full((tokens, 52), neighbour, np.float32)
                x[place] = row[0]
                testing.assert_same_bits(gl.linear(x, w)[place], alone[0])


def test_slices_of_the_weight_slice_the_result() -> None:  # D3
    x, w = testing.normal((5, 52), F32, 0), testing.normal((70, 52), F32, 1)
    y = gl.linear(x, w)
    for part in (slice(0, 1), slice(3, 40), slice(64, 70)):
        testing.assert_same_bits(gl.linear(x, w[part]), y[:, part])


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_splits_of_k_give_the_same_bits(dtype: Any) -> None:  # D4
    inner = 2 * SEGMENT["gemm_simt"] + 5
    x, w = testing.normal((3, inner), dtype, 0), testing.normal((4, inner), dtype, 1)
    bits = []
    for splits in (1, 2, 3):
        with gemm.planning(Options(family="gemm_simt", tile=SMALL, splits=splits)):
            bits.append(gl.linear(x, w, activation="gelu"))
    testing.assert_same_bits(bits[1], bits[0])
    testing.assert_same_bits(bits[2], bits[0])


def test_any_number_of_sms_gives_the_same_bits() -> None:  # D5
    inner = 2 * SEGMENT["gemm_simt"]
    x, w = testing.normal((3, inner), F32, 0), testing.normal((4, inner), F32, 1)
    want = gl.linear(x, w)
    for sms in (1, 7):
        with gl.options(num_sms=sms):
            testing.assert_same_bits(gl.linear(x, w), want)


def test_micro_batches_accumulate_to_the_same_bits() -> None:  # D6
    step = SEGMENT["gemm_simt"]
    tokens = 2 * step + 10
    dy, x = testing.normal((tokens, 5), F32, 0), testing.normal((tokens, 6), F32, 1)
    whole = np.zeros((5, 6), np.float32)
    gl.wgrad(dy, x, out=whole, accumulate=True)
    parts = np.zeros((5, 6), np.float32)
    for start in range(0, tokens, step):
        gl.wgrad(dy[start : start + step], x[start : start + step], out=parts, accumulate=True)
    testing.assert_same_bits(parts, whole)


def test_a_swap_of_two_reduction_steps_changes_the_bits() -> None:
    """The contract is not empty: another order of k gives other bits on this data."""
    x, w = testing.normal((4, 64), F32, 0), testing.normal((5, 64), F32, 1)
    order = np.arange(64)
    order[[3, 40]] = order[[40, 3]]
    plain, swapped = gl.linear(x, w), gl.linear(x[:, order].copy(), w[:, order].copy())
    assert not np.array_equal(plain.view(np.uint32), swapped.view(np.uint32))


def test_the_chain_is_the_contract() -> None:
    """One output equals a chain of correctly rounded FMAs, k ascending, computed with fractions."""
    from fractions import Fraction

    x, w = testing.normal((1, 37), F32, 0), testing.normal((1, 37), F32, 1)
    total = np.float32(0)
    for a, b in zip(x[0].tolist(), w[0].tolist(), strict=True):
        exact = Fraction(a) * Fraction(b) + Fraction(float(total))
        total = _nearest(exact)
    assert gl.linear(x, w)[0, 0] == total


def _nearest(exact: Any) -> np.float32:
    """The float32 nearest to a fraction, ties to even (no such tie ends in a float64 that is one)."""
    guess = np.float32(float(exact))
    around = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    from fractions import Fraction

    return min(around, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.uint32)) & 1))


def test_outputs_are_written_only_and_guarded() -> None:
    """NaN in `out` and around operands never reaches a result; what surrounds an output keeps its bytes."""
    x, w = ints(5, 33), ints(6, 33, seed=1)
    buffer = np.full((5, 10), np.nan, np.float32)
    gl.linear(x, w, out=buffer[:, 2:8])
    testing.assert_same_bits(buffer[:, 2:8], (f8(x) @ f8(w).T).astype(np.float32))
    assert np.isnan(buffer[:, :2]).all() and np.isnan(buffer[:, 8:]).all()


def test_special_values_go_where_ieee_sends_them() -> None:
    x, w = testing.normal((4, 20), F32, 0), testing.normal((5, 20), F32, 1)
    x[1, 3], x[2, 4], w[3, 4] = np.nan, np.inf, 0.0
    with np.errstate(invalid="ignore"):
        exact = f8(x) @ f8(w).T
    y = gl.linear(x, w)
    assert np.array_equal(np.isnan(y), np.isnan(exact))
    assert np.array_equal(np.isposinf(y), np.isposinf(exact)) and np.array_equal(np.isneginf(y), np.isneginf(exact))


def test_accumulator_dtype_is_what_the_bounds_assume() -> None:
    assert [accumulator_dtype(NAMES[d]) for d in DTYPES] == ["float32", "float64", "float32", "float32"]
