"""gemm_mma on sm_75, where float16 is multiplied by m16n8k8 from k-tiles that pass through registers: run in the emulator with
every sanitizer. What the copies of k-tiles, the instruction and the shared memory of staged rows can do wrong is tested here;
the rest of the family is that of tests/test_mma_run.py.

Segments are mostly of 64 here, two k-tiles: K of several segments stays small, and tests share kernels. A finding is an error
in any test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpulinear as gl
from gpulinear import check, gemm, reference, testing
from gpulinear.backends.emulator import last_results
from gpulinear.config import GemmMmaConfig, candidates
from gpulinear.device import DeviceSpec
from gpulinear.emulator import tensorcore
from gpulinear.plan import Options
from gpulinear.problem import Gemm, Matrix

from . import layers
from .layers import check_exact, f8
from .test_kernel_counters import aligned

Array = np.ndarray[Any, Any]
F16, F32 = np.dtype("float16"), np.dtype("float32")
BF16 = np.dtype(ml_dtypes.bfloat16)
T4 = DeviceSpec.preset("sm_75")
SMALL, FEW_TOKENS = "64x64x32/32x32", "16x64x32/16x32"
TILES = ("128x256x32/64x64", "128x128x32/64x64", "64x128x32/64x32", "128x64x32/64x32", SMALL, FEW_TOKENS)
ints = partial(layers.ints, dtype=F16)


def normals(*shapes: tuple[int, ...]) -> list[Array]:
    return [testing.normal(shape, F16, seed) for seed, shape in enumerate(shapes)]


@pytest.fixture(autouse=True)
def emulator(compiled: None) -> Iterator[None]:
    with gl.host_backend("emulator", arch="sm_75"):
        yield


def mma(tile: str | None = SMALL, **options: Any) -> AbstractContextManager[None]:
    return gemm.planning(Options(tile=tile, **options))


# ---- which problems, which variants ----


def test_float16_is_planned_on_tensor_cores_and_bfloat16_is_not() -> None:
    for dtype, family, segment in (("float16", "gemm_mma", 4096), ("bfloat16", "gemm_simt", 1024)):
        for op in ("linear", "dgrad", "wgrad"):
            shapes = {"linear": ((3, 7), (5, 7)), "dgrad": ((3, 5), (5, 7)), "wgrad": ((3, 5), (3, 7))}[op]
            step = gl.explain(op, *(gl.ShapeDtype(shape, dtype) for shape in shapes), arch="sm_75").steps[0]
            assert (step.family, step.config.segment) == (family, segment), op


def test_every_tile_is_legal_and_two_blocks_of_128x128_fit_on_an_sm() -> None:
    x, w = gl.ShapeDtype((512, 512), "float16"), gl.ShapeDtype((512, 512), "float16")
    choices = gl.explain("linear", x, w, arch="sm_75").choices
    assert {choice.config.tile for choice in choices} == set(TILES)
    assert all(choice.refused is None for choice in choices)
    resident = {choice.config.tile: choice.cost.blocks_per_sm for choice in choices if choice.cost}
    assert resident[TILES[1]] == 2


def test_what_an_arch_has_no_instruction_for_is_refused() -> None:
    operand = Matrix("x", 64, 64, 64, 1, "float16", 16)
    problem = Gemm("linear", operand, operand.T, operand, None)
    turing = next(config for config, _ in candidates(problem, T4))
    ampere = next(config for config, _ in candidates(problem, DeviceSpec.preset("sm_80")))
    assert isinstance(turing, GemmMmaConfig) and isinstance(ampere, GemmMmaConfig)
    assert not turing.asynchronous and ampere.asynchronous
    assert "need sm_80" in (ampere.supports(problem, T4) or "")
    assert "other bits" in (turing.supports(problem, DeviceSpec.preset("sm_90a")) or "")
    wide = replace(operand, dtype="bfloat16")
    said = turing.supports(replace(problem, a=wide, b=wide.T, d=wide), T4)
    assert said == "tensor cores multiply only float16 before sm_80, this is sm_75"


# ---- exact integers ----


@pytest.mark.parametrize("shape", [(1, 1, 1), (63, 65, 7), (64, 64, 64), (65, 63, 65), (3, 129, 331)], ids=str)
def test_exact_integers_at_the_edges_of_tiles(shape: tuple[int, int, int]) -> None:
    """331: six segments, of which the last is shorter than a k-tile and no multiple of an instruction."""
    with mma(segment=64):
        check_exact(*shape, F16)


@pytest.mark.parametrize("pitch", [1, 2, 4])
def test_operands_are_read_in_place_at_any_alignment(pitch: int) -> None:
    """Rows that start at multiples of 2, 4 and 8 bytes, and are no longer than that."""
    x, w = (ints(rows, 64 + pitch, seed=rows)[:, pitch : 40 + 2 * pitch] for rows in (33, 34))
    dy = ints(33, 48, seed=2)[:, 8 - pitch : 42 - pitch]
    with mma(segment=64):
        testing.assert_same_bits(gl.linear(x, w), (f8(x) @ f8(w).T).astype(F16))
        testing.assert_same_bits(gl.dgrad(dy, w), (f8(dy) @ f8(w)).astype(F16))
        testing.assert_same_bits(gl.wgrad(dy, x), (f8(dy).T @ f8(x)).astype(F16))
        assert len(gl.explain("wgrad", dy, x).steps) == 1


@pytest.mark.parametrize("view", testing.VIEWS)
def test_any_view_gives_what_the_copy_gives(view: str) -> None:
    make = testing.VIEWS[view]
    x, w, dy = normals((6, 40), (9, 40), (6, 9))
    vx, vw, vdy = (make(a, np) for a in (x, w, dy))
    with mma():
        testing.assert_same_bits(gl.linear(vx, vw), gl.linear(x, w))
        testing.assert_same_bits(gl.dgrad(vdy, vw), gl.dgrad(dy, w))
        testing.assert_same_bits(gl.wgrad(vdy, vx), gl.wgrad(dy, x))


def test_segments_of_the_family_itself() -> None:
    """S = 4096: K of two segments, in one block and split; small integers are exact."""
    x, w = ints(3, 4096 + 24), ints(5, 4096 + 24, seed=1)
    for splits in (1, 2):
        with mma(splits=splits):
            testing.assert_same_bits(gl.linear(x, w, out_dtype=F32), (f8(x) @ f8(w).T).astype(F32))


@pytest.mark.parametrize("splits", [1, 2])
def test_accumulation_starts_from_what_the_output_holds(splits: int) -> None:
    dy, x, held = ints(150, 41), ints(150, 36, seed=1), layers.ints(41, 36, seed=2)
    out = held.copy()
    with mma(segment=64, splits=splits):
        gl.wgrad(dy, x, out=out, accumulate=True)
    testing.assert_same_bits(out, (f8(dy).T @ f8(x) + held).astype(F32))


# ---- the numeric contract ----


def test_the_chain_is_the_contract() -> None:
    """k8 steps of the model from +0 inside a segment, K ascending; segment sums added ascending in float32."""
    x, w = normals((20, 203), (24, 203))
    total: Array | None = None
    for start in range(0, 203, 128):
        a, b = (m[:, start : start + 128].view(np.uint16) for m in (x, w))
        chain = np.zeros((20, 24), np.float32)
        for k in range(0, a.shape[1], 8):
            left, right = (np.pad(m[:, k : k + 8], ((0, 0), (0, 8 - m[:, k : k + 8].shape[1]))) for m in (a, b))
            chain = tensorcore.multiply_add(left, right.T, chain, "f16", "sm_75")
        total = chain if total is None else total + chain
    with mma(segment=128):
        testing.assert_same_bits(gl.linear(x, w, out_dtype="float32"), total)


def test_every_tile_gives_the_same_bits() -> None:  # D4
    x, w, dy = normals((70, 104), (72, 104), (70, 72))

    def results(tile: str) -> list[Array]:
        with mma(tile, segment=64):
            gradient = [] if tile == FEW_TOKENS else [gl.wgrad(dy, x)]
            return [gl.linear(x, w), gl.dgrad(dy, w), *gradient]

    want = results(SMALL)
    for tile in TILES:
        for got, same in zip(results(tile), want, strict=False):
            testing.assert_same_bits(got, same)


@pytest.mark.parametrize("tile", [SMALL, FEW_TOKENS])
def test_splits_of_k_give_the_same_bits(tile: str) -> None:  # D4
    x, w, b = normals((19, 300), (70, 300), (70,))
    bits = []
    for splits in (1, 2, 5):
        with mma(tile, segment=64, splits=splits):
            bits.append(gl.linear(x, w, b, activation="gelu"))
    for other in bits[1:]:
        testing.assert_same_bits(other, bits[0])


@pytest.mark.parametrize("schedule", ["warps", "random:0", "random:1"])
def test_every_schedule_gives_the_same_bits(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:  # D1
    """Segments of two k-tiles, in tiles of four warps and of two."""
    x, w, dy = normals((70, 200), (66, 200), (70, 66))

    def everything() -> list[Array]:
        with mma(segment=64):
            found = [gl.linear(x, w, activation="silu"), gl.wgrad(dy, x)]
        with mma(FEW_TOKENS, segment=64):
            return [*found, gl.linear(x[:5], w)]

    lockstep = everything()
    monkeypatch.setenv("GPULINEAR_EMULATOR_SCHEDULE", schedule)
    for got, want in zip(everything(), lockstep, strict=True):
        testing.assert_same_bits(got, want)


def test_row_bits_do_not_depend_on_the_batch() -> None:  # D2
    w, row = normals((40, 56), (1, 56))
    alone = gl.linear(row, w)
    for tokens in (2, 17, 65, 130):
        for place in {0, tokens - 1}:
            for neighbour in (np.nan, np.inf, 3.0):
                x = np.full((tokens, 56), neighbour, F16)
                x[place] = row[0]
                testing.assert_same_bits(gl.linear(x, w)[place], alone[0])


def test_slices_of_the_weight_slice_the_result() -> None:  # D3
    x, w, dy = normals((5, 56), (70, 56), (5, 70))
    y, dx = gl.linear(x, w), gl.dgrad(dy, w)
    for part in (slice(3, 40), slice(64, 70)):
        testing.assert_same_bits(gl.linear(x, w[part]), y[:, part])
    testing.assert_same_bits(gl.dgrad(dy, w[:, 16:56]), dx[:, 16:56])


def test_micro_batches_accumulate_to_the_same_bits() -> None:  # D6
    dy, x = normals((150, 9), (150, 20))
    whole, parts = np.zeros((9, 20), np.float32), np.zeros((9, 20), np.float32)
    with mma(segment=64):
        gl.wgrad(dy, x, out=whole, accumulate=True)
        for start in range(0, 150, 64):
            gl.wgrad(dy[start : start + 64], x[start : start + 64], out=parts, accumulate=True)
    testing.assert_same_bits(parts, whole)


# ---- bounds and special values ----


@pytest.mark.parametrize("fill", ["normal", "wide", "subnormals"])
def test_errors_stay_within_the_bound(fill: str) -> None:
    make = getattr(testing, fill)
    x, w, b = make((9, 77), F16, 0), make((11, 77), F16, 1), make((11,), F16, 2)
    how = check.summation("float16", T4)
    assert (how.segment, how.step_units) == (4096, 3.0)
    exact = f8(x) @ f8(w).T
    testing.assert_within(gl.linear(x, w), exact, testing.gemm_bound(x, w.T, how, out_dtype=F16))
    y = gl.linear(x, w, b, activation="silu", out_dtype=F32)
    bound = testing.gemm_bound(x, w.T, how, out_dtype=F32, bias=b, activation="silu")
    testing.assert_within(y, reference.activate(exact + f8(b), "silu"), bound)
    assert [family for family, _ in last_results()] == ["gemm_mma"]


def test_special_values_stay_in_their_row_and_column() -> None:
    x, w = normals((4, 24), (5, 24))
    x[1, 3], x[2, 4], w[3, 4] = np.nan, np.inf, 0.0
    with np.errstate(invalid="ignore"):
        exact = f8(x) @ f8(w).T
    y = gl.linear(x, w)
    assert np.array_equal(np.isnan(y), np.isnan(exact))
    assert np.array_equal(np.isposinf(y), np.isposinf(exact)) and np.array_equal(np.isneginf(y), np.isneginf(exact))


# ---- what the hardware is asked for ----


@pytest.mark.parametrize("op", ["linear", "dgrad", "wgrad"])
def test_no_bank_conflict_and_no_partial_sector(op: str) -> None:
    for tile in TILES:
        if tile == FEW_TOKENS and op == "wgrad":
            continue
        m, n = (int(extent) for extent in tile.split("/")[0].split("x")[:2])
        shapes = {"linear": ((m, 96), (n, 96)), "dgrad": ((m, 96), (96, n)), "wgrad": ((96, m), (96, n))}[op]
        a, b = (aligned(ints(*shape, seed=seed)) for seed, shape in enumerate(shapes))
        with mma(tile, segment=64):  # of two segments: with a running total
            getattr(gl, op)(a, b, out=aligned(np.zeros((m, n), F16)))
        ((family, result),) = last_results()
        assert family == "gemm_mma"
        counters = result.counters
        assert (counters.wavefront_ratio, counters.sector_ratio) == (1.0, 1.0), f"{tile}: {counters}"
        step = "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32"
        assert counters.mix[step][0] == (m // 16) * (n // 8) * (96 // 8)
