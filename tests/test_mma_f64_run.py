"""gemm_mma on float64, run in the emulator with every sanitizer: the bits of gemm_simt, whatever the tile.

In the emulator's model a tensor core adds float64 products one by one, each an IEEE fma, k ascending. That is gemm_simt's
chain, so the two families must agree bit for bit; a GPU has yet to confirm the model (docs/gpu-todo.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from gpulinear import check, gemm, reference, testing
from gpulinear.backends.emulator import last_results
from gpulinear.device import ARCHS, DeviceSpec
from gpulinear.plan import Options

from . import layers
from .layers import check_exact
from .test_kernel_counters import aligned

Array = np.ndarray[Any, Any]
F64 = np.dtype("float64")
CORES = ("sm_80", "sm_90a")
SMALL = "32x32x8/16x32"
TILES = ("128x128x8/64x32", "128x64x8/64x32", "64x64x8/32x32", SMALL, "16x64x8/16x32")


@pytest.fixture(autouse=True)
def emulator(compiled: None) -> Iterator[None]:
    with gl.host_backend("emulator", arch="sm_90a"):
        yield


def mma(tile: str | None = SMALL, segment: int | None = 16, **options: Any) -> AbstractContextManager[None]:
    return gemm.planning(Options(family="gemm_mma", tile=tile, segment=segment, **options))


def simt(segment: int | None = 16) -> AbstractContextManager[None]:
    return gemm.planning(Options(family="gemm_simt", tile="32x32x8/4x4", segment=segment))


def normal(*shape: int, seed: int = 0) -> Array:
    return testing.normal(shape, F64, seed)


def ints(*shape: int, seed: int = 0) -> Array:
    return layers.ints(*shape, dtype=F64, seed=seed)


def layer(tokens: int, out: int, inner: int, make: Callable[..., Array] = normal) -> Callable[[], list[Array]]:
    """Runs the three products of a layer on one set of operands."""
    x, w, dy = make(tokens, inner), make(out, inner, seed=1), make(tokens, out, seed=2)
    return lambda: [gl.linear(x, w), gl.dgrad(dy, w), gl.wgrad(dy, x)]


def assert_same(results: list[Array], wanted: list[Array]) -> None:
    for got, want in zip(results, wanted, strict=True):
        testing.assert_same_bits(got, want)


def test_float64_is_planned_on_tensor_cores_where_they_are_faster() -> None:
    operand = gl.ShapeDtype((5, 7), F64)
    for arch in ARCHS:
        plan = gl.explain("linear", operand, operand, arch=arch)
        assert plan.steps[0].family == ("gemm_mma" if arch in CORES else "gemm_simt")
        assert plan.steps[0].config.segment == 1024
        if arch not in CORES:
            with mma(None), pytest.raises(gl.BackendError, match="float64 on tensor cores needs sm_80 or sm_90"):
                gl.explain("linear", operand, operand, arch=arch)
    with mma(None, None):
        assert tuple(c.config.tile for c in gl.explain("linear", operand, operand).choices) == TILES


EDGES = [(1, 1, 1), (31, 33, 7), (32, 32, 8), (33, 1, 9), (3, 67, 57)]


@pytest.mark.parametrize(("arch", "shape"), [*(("sm_90a", s) for s in EDGES), ("sm_80", EDGES[-1])], ids=str)
def test_exact_integers_at_the_edges_of_tiles(arch: str, shape: tuple[int, int, int]) -> None:
    with gl.host_backend("emulator", arch=arch), mma():
        check_exact(*shape, F64)


@pytest.mark.parametrize(("arch", "tile"), [*(("sm_90a", tile) for tile in TILES), ("sm_80", TILES[0])], ids=str)
def test_every_tile_gives_the_bits_of_gemm_simt(arch: str, tile: str) -> None:  # D4
    """Two to five segments, whose total is kept between them; two tiles of the larger ones in one direction at least."""
    run = layer(70, 36, 20)
    with simt():
        want = run()
    with gl.host_backend("emulator", arch=arch), mma(tile):
        assert_same(run(), want)


@pytest.mark.parametrize("fill", ["wide", "subnormals", "signed zeros", "underflow", "specials"])
@pytest.mark.parametrize("arch", CORES)
def test_hostile_data_gives_the_bits_of_gemm_simt(arch: str, fill: str) -> None:
    """Bit for bit, but for what a NaN holds."""
    rng = np.random.default_rng(0)

    def make(*shape: int, seed: int = 0) -> Array:
        if fill in ("wide", "subnormals"):
            made: Array = getattr(testing, fill)(shape, F64, seed)
            return made
        values = normal(*shape, seed=seed)
        if fill == "signed zeros":
            return np.copysign(0.0, values)
        if fill == "underflow":  # every product is lost, most from below
            return np.copysign(2.0**-600, values - 0.5)
        values.flat[rng.integers(0, values.size, 5)] = (np.inf, -np.inf, np.nan, 1e308, -1e308)
        return values

    run = layer(9, 7, 21, make)
    with simt():
        want = run()
    with gl.host_backend("emulator", arch=arch), mma():
        results = run()
    for got, expected in zip(results, want, strict=True):
        nan = np.isnan(expected)
        assert np.array_equal(np.isnan(got), nan) and nan.any() == (fill == "specials")
        testing.assert_same_bits(np.where(nan, 0.0, got), np.where(nan, 0.0, expected))
        if fill in ("signed zeros", "underflow"):
            testing.assert_same_bits(got, np.zeros_like(got))


def test_the_chain_is_the_contract() -> None:
    """Chains of correctly rounded FMAs, k ascending, in fractions; sums of segments added ascending."""
    x, w = normal(1, 37), normal(2, 37, seed=1)
    want = []
    for row in w.tolist():
        sums = []
        for start in range(0, 37, 16):
            chain = 0.0
            for a, b in zip(x[0, start : start + 16].tolist(), row[start : start + 16], strict=True):
                chain = float(Fraction(a) * Fraction(b) + Fraction(chain))
            sums.append(chain)
        want.append((sums[0] + sums[1]) + sums[2])
    with mma():
        testing.assert_same_bits(gl.linear(x, w), np.array([want]))


def test_segments_and_splits_of_the_family_itself() -> None:
    """S = 1024, as planned: K of three segments, in one block and split, with an epilogue."""
    x, w, b = normal(3, 2053), normal(4, 2053, seed=1), normal(4, seed=2)
    with simt(None):
        want = gl.linear(x, w, b, activation="gelu")
    for splits in (1, 2, 3):
        with mma(SMALL, None, splits=splits):
            testing.assert_same_bits(gl.linear(x, w, b, activation="gelu"), want)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
def test_bias_activation_and_preactivation(activation: str | None) -> None:
    """In one launch, on ragged rows and columns, with gemm_simt's bits and inside the bound."""
    x, w, b = normal(35, 20), normal(37, 20, seed=1), normal(37, seed=2)
    results = []
    for family in (mma(), simt()):
        preact = np.empty((35, 37))
        with family:
            y = gl.linear(x, w, b, activation=activation, preact_out=preact)
        assert len(last_results()) == 1
        results.append([y, preact])
    assert_same(*results)
    how = check.summation("float64", DeviceSpec.preset("sm_90a"))
    bound = testing.gemm_bound(x, w.T, how, out_dtype=F64, bias=b, activation=activation)
    testing.assert_within(results[0][0], reference.activate(x @ w.T + b, activation), bound)


@pytest.mark.parametrize("fill", ["normal", "wide", "subnormals"])
def test_errors_stay_within_the_bound(fill: str) -> None:
    make = getattr(testing, fill)
    x, w, dy = make((9, 77), F64, 0), make((11, 77), F64, 1), make((9, 11), F64, 2)
    how = check.summation("float64", DeviceSpec.preset("sm_90a"))
    assert how == testing.fma("float64", 1024)
    for got, a, b in ((gl.linear(x, w), x, w.T), (gl.dgrad(dy, w), dy, w), (gl.wgrad(dy, x), dy.T, x)):
        testing.assert_within(got, a @ b, testing.gemm_bound(a, b, how, out_dtype=F64))


@pytest.mark.parametrize("splits", [1, 3])
def test_accumulation_and_micro_batches(splits: int) -> None:  # D6
    dy, x, held = ints(40, 33), ints(40, 35, seed=1), ints(33, 35, seed=2)
    out = held.copy()
    with mma(splits=splits):
        gl.wgrad(dy, x, out=out, accumulate=True)
        testing.assert_same_bits(out, dy.T @ x + held)
        dy, x = normal(40, 33), normal(40, 35, seed=1)
        whole, parts = np.zeros((33, 35)), np.zeros((33, 35))
        gl.wgrad(dy, x, out=whole, accumulate=True)
        for start in range(0, 40, 16):
            gl.wgrad(dy[start : start + 16], x[start : start + 16], out=parts, accumulate=True)
    testing.assert_same_bits(parts, whole)


def test_rows_do_not_depend_on_the_batch_nor_columns_on_the_weight() -> None:  # D2, D3
    x, w, dy = normal(130, 20), normal(40, 20, seed=1), normal(130, 40, seed=2)
    y, dx = gl.linear(x, w), gl.dgrad(dy, w)
    for tokens in (1, 2, 17, 33, 65, 129):
        testing.assert_same_bits(gl.linear(x[:tokens], w), y[:tokens])
        testing.assert_same_bits(gl.dgrad(dy[130 - tokens :], w), dx[130 - tokens :])
    for part in (slice(0, 1), slice(3, 36)):
        testing.assert_same_bits(gl.linear(x[:9], w[part]), y[:9, part])
    for neighbour in (np.nan, np.inf):
        hostile = np.full((35, 20), neighbour)
        hostile[20] = x[20]
        testing.assert_same_bits(gl.linear(hostile, w)[20], y[20])


@pytest.mark.parametrize("view", testing.VIEWS)
def test_any_view_gives_what_the_copy_gives(view: str) -> None:
    x, w, dy = normal(6, 20), normal(9, 20, seed=1), normal(6, 9, seed=2)
    vx, vw, vdy = (testing.VIEWS[view](a, np) for a in (x, w, dy))
    with mma():
        assert_same(
            [gl.linear(vx, vw), gl.dgrad(vdy, vw), gl.wgrad(vdy, vx)],
            [gl.linear(x, w), gl.dgrad(dy, w), gl.wgrad(dy, x)],
        )


def test_rows_that_start_at_any_element_are_read_in_place() -> None:
    for lead in (1, 2):
        x, w, dy = (ints(33, 35 + lead, seed=seed)[:, lead:] for seed in range(3))
        with mma():
            assert_same(
                [gl.linear(x, w), gl.dgrad(dy[:, :33], w), gl.wgrad(dy, x)], [x @ w.T, dy[:, :33] @ w, dy.T @ x]
            )
            assert len(gl.explain("wgrad", dy, x).steps) == 1


def test_outputs_are_written_only_and_guarded() -> None:
    x, w = ints(5, 9), ints(16, 9, seed=1)
    for lead in (2, 3):
        buffer = np.full((5, 24), np.nan)
        gl.linear(x, w, out=buffer[:, lead : lead + 16])
        testing.assert_same_bits(buffer[:, lead : lead + 16], x @ w.T)
        assert np.isnan(buffer[:, :lead]).all() and np.isnan(buffer[:, lead + 16 :]).all()


@pytest.mark.parametrize("schedule", ["warps", "random:0", "random:1"])
def test_every_schedule_gives_the_same_bits(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:  # D1
    run = layer(33, 35, 27)
    with mma():
        lockstep = run()
        monkeypatch.setenv("GPULINEAR_EMULATOR_SCHEDULE", schedule)
        assert_same(run(), lockstep)


@pytest.mark.parametrize("op", ["linear", "dgrad", "wgrad"])
@pytest.mark.parametrize("tile", TILES)
def test_no_bank_conflict_and_no_partial_sector(tile: str, op: str) -> None:
    m, n = (int(extent) for extent in tile.split("/")[0].split("x")[:2])
    shapes = {"linear": ((m, 32), (n, 32)), "dgrad": ((m, 32), (32, n)), "wgrad": ((32, m), (32, n))}[op]
    a, b = (aligned(ints(*shape, seed=seed)) for seed, shape in enumerate(shapes))
    with mma(tile):  # of two segments: with a running total
        getattr(gl, op)(a, b, out=aligned(np.zeros((m, n))))
    ((_, result),) = last_results()
    assert (result.counters.wavefront_ratio, result.counters.sector_ratio) == (1.0, 1.0), str(result.counters)
    step = "mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64"
    assert result.counters.mix[step][0] == (m // 16) * (n // 8) * (32 // 4)
