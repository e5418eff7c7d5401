"""gemm_mma, run in the emulator with every sanitizer: exact integers, the model's bits, the numeric contract.

Segments are 64 or 128 long here, so that K of several segments stays small. A finding is an error in any test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpulinear as gl
from gpulinear import check, gemm, reference, testing
from gpulinear.backends.emulator import last_results
from gpulinear.config import GemmMmaConfig
from gpulinear.device import DeviceSpec
from gpulinear.emulator import tensorcore
from gpulinear.plan import Options

from . import layers
from .layers import check_exact, f8
from .test_kernel_counters import aligned

Array = np.ndarray[Any, Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
ints = partial(layers.ints, dtype=BF16)
F16 = np.dtype("float16")
F32 = np.dtype("float32")
ARCHS = ("sm_80", "sm_86", "sm_90a", "sm_120")
NAMES = {BF16: "bfloat16", F16: "float16"}


@pytest.fixture(autouse=True)
def emulator(compiled: None) -> Iterator[None]:
    with gl.host_backend("emulator", arch="sm_80"):
        yield


def tiles(arch: str = "sm_80") -> list[str]:
    """The names of the tiles for any majors, largest first; all are legal for aligned operands."""
    operand = gl.ShapeDtype((64, 64), "bfloat16")
    with mma(None):
        choices = gl.explain("linear", operand, operand, arch=arch).choices
    assert all(choice.refused is None for choice in choices)
    return [choice.config.tile for choice in choices if choice.config.block_m > 16]


def mma(tile: str | None = "64x64x32/32x32", **options: Any) -> AbstractContextManager[None]:
    """Plan with gemm_mma, whatever family the problem belongs to."""
    return gemm.planning(Options(family="gemm_mma", tile=tile, **options))


def test_sixteen_bit_layers_are_planned_on_tensor_cores_from_sm_80_on() -> None:
    for dtype in NAMES.values():
        operand = gl.ShapeDtype((5, 7), dtype)
        for arch in ("sm_80", "sm_86", "sm_89", "sm_100", "sm_120"):
            assert gl.explain("linear", operand, operand, arch=arch).steps[0].family == "gemm_mma"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_exact_integers_on_every_arch(dtype: Any, arch: str) -> None:
    with gl.host_backend("emulator", arch=arch), mma(tiles(arch)[-1], segment=128):
        check_exact(72, 40, 200, dtype)


SHAPES = [(1, 1, 1), (1, 8, 8), (8, 1, 64), (63, 65, 7), (64, 64, 64), (65, 63, 65), (3, 129, 131)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_integers_at_the_edges_of_tiles(shape: tuple[int, int, int]) -> None:
    with mma():
        check_exact(*shape, BF16)


@pytest.mark.parametrize("pitch", [1, 2, 4, 8])
def test_operands_are_read_in_place_at_any_alignment(pitch: int) -> None:
    """Rows that start at multiples of 2, 4, 8 and 16 bytes; an odd extent of rows that are aligned."""
    for inner in (40 + pitch, 37):
        wide_x, wide_w = ints(33, 64 + pitch), ints(34, 64 + pitch, seed=1)
        x, w = wide_x[:, pitch : pitch + inner], wide_w[:, pitch : pitch + inner]
        dy = ints(33, 48, seed=2)[:, 8 - pitch : 42 - pitch]
        with mma():
            testing.assert_same_bits(gl.linear(x, w), (f8(x) @ f8(w).T).astype(BF16))
            testing.assert_same_bits(gl.dgrad(dy, w), (f8(dy) @ f8(w)).astype(BF16))
            testing.assert_same_bits(gl.wgrad(dy, x), (f8(dy).T @ f8(x)).astype(BF16))
            assert len(gl.explain("wgrad", dy, x).steps) == 1


def test_a_buffer_that_is_written_through_a_copy_is_added_to() -> None:
    """One pointer at an odd element makes float32 arrays of the call unaligned, as far as the planner knows."""
    dy, x, held = ints(9, 17)[:, 1:], ints(9, 8, seed=1), ints(16, 8, dtype=F32, seed=2)
    out = held.copy()
    with mma():
        gl.wgrad(dy, x, out=out, accumulate=True)
    testing.assert_same_bits(out, (f8(dy).T @ f8(x) + f8(held)).astype(F32))


@pytest.mark.parametrize("view", testing.VIEWS)
def test_any_view_gives_what_the_copy_gives(view: str) -> None:
    make = testing.VIEWS[view]
    x, w, dy = (testing.normal(shape, BF16, seed) for seed, shape in enumerate(((6, 40), (9, 40), (6, 9))))
    vx, vw, vdy = (make(a, np) for a in (x, w, dy))
    with mma():
        testing.assert_same_bits(gl.linear(vx, vw), gl.linear(x, w))
        testing.assert_same_bits(gl.dgrad(vdy, vw), gl.dgrad(dy, w))
        testing.assert_same_bits(gl.wgrad(vdy, vx), gl.wgrad(dy, x))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_the_chain_is_the_contract(dtype: Any, arch: str) -> None:
    """k16 steps of the model from +0 inside a segment, K ascending; segment sums added ascending in float32."""
    x, w = testing.normal((20, 200), dtype, 0), testing.normal((24, 200), dtype, 1)
    kind = "bf16" if dtype == BF16 else "f16"
    total: Array | None = None
    for start in range(0, 200, 128):
        a, b = (m[:, start : start + 128].view(np.uint16) for m in (x, w))
        a, b = (np.pad(m, ((0, 0), (0, -m.shape[1] % 16))) for m in (a, b))
        chain = tensorcore.multiply_add(a, b.T, np.zeros((20, 24), np.float32), kind, arch)
        total = chain if total is None else total + chain
    with gl.host_backend("emulator", arch=arch), mma(segment=128):
        testing.assert_same_bits(gl.linear(x, w, out_dtype="float32"), total)


@pytest.mark.parametrize("tile", range(len(tiles())))
@pytest.mark.parametrize("arch", ["sm_80", "sm_120"])
def test_every_tile_gives_the_same_bits(arch: str, tile: int) -> None:  # D4
    x, w = testing.normal((70, 104), BF16, 0), testing.normal((72, 104), BF16, 1)
    dy = testing.normal((70, 72), BF16, 2)
    results = []
    for name in (tiles(arch)[-1], tiles(arch)[tile]):
        with gl.host_backend("emulator", arch=arch), mma(name, segment=64):
            results.append([gl.linear(x, w), gl.dgrad(dy, w), gl.wgrad(dy, x, out_dtype="float32")])
    for got, want in zip(results[1], results[0], strict=True):
        testing.assert_same_bits(got, want)


@pytest.mark.parametrize("out_dtype", [BF16, F32], ids=str)
def test_splits_of_k_give_the_same_bits(out_dtype: Any) -> None:  # D4
    x, w, b = (testing.normal(shape, BF16, seed) for seed, shape in enumerate(((37, 300), (70, 300), (70,))))
    bits = []
    for splits in (1, 2, 3, 5):
        with mma(segment=64, splits=splits):
            bits.append(gl.linear(x, w, b, activation="gelu", out_dtype=out_dtype))
    for other in bits[1:]:
        testing.assert_same_bits(other, bits[0])


def test_segments_of_the_family_itself() -> None:
    """S = 4096: K of two segments, in one block and split; small integers are exact."""
    x, w = ints(3, 4096 + 24), ints(5, 4096 + 24, seed=1)
    for splits in (1, 2):
        with mma(splits=splits):
            testing.assert_same_bits(gl.linear(x, w, out_dtype=F32), (f8(x) @ f8(w).T).astype(F32))


def test_alignment_changes_no_bit() -> None:  # D4
    x, w = testing.normal((20, 72), BF16, 0), testing.normal((24, 72), BF16, 1)
    with mma(segment=64):
        want = gl.linear(aligned(x), aligned(w))
        for lead in (1, 2, 4):
            moved = [np.zeros((len(m), 72 + lead), BF16)[:, lead:] for m in (x, w)]
            for to, m in zip(moved, (x, w), strict=True):
                to[...] = m
            testing.assert_same_bits(gl.linear(*moved), want)


@pytest.mark.parametrize("schedule", ["warps", "random:0", "random:1", "random:2"])
def test_every_schedule_gives_the_same_bits(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:  # D1
    x, w, dy = (testing.normal(shape, BF16, seed) for seed, shape in enumerate(((70, 200), (66, 200), (70, 66))))

    def everything() -> list[Array]:
        with mma(segment=128):
            return [gl.linear(x, w, activation="silu"), gl.dgrad(dy, w), gl.wgrad(dy, x)]

    lockstep = everything()
    monkeypatch.setenv("GPULINEAR_EMULATOR_SCHEDULE", schedule)
    for got, want in zip(everything(), lockstep, strict=True):
        testing.assert_same_bits(got, want)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_row_bits_do_not_depend_on_the_batch(dtype: Any) -> None:  # D2
    w, row = testing.normal((40, 56), dtype, 0), testing.normal((1, 56), dtype, 1)
    with mma(None):
        alone = gl.linear(row, w)
        for tokens in (2, 9, 33, 65, 130):
            for place in {0, tokens // 2, tokens - 1}:
                for neighbour in (np.nan, np.inf, 3.0):
                    x = np.full((tokens, 56), neighbour, dtype)
                    x[place] = row[0]
                    testing.assert_same_bits(gl.linear(x, w)[place], alone[0])


def test_every_number_of_tokens_gives_the_same_rows() -> None:  # D2
    """Tokens 1 to 300 of one batch, and the first row of random ones."""
    w, x = testing.normal((24, 40), BF16, 0), testing.normal((300, 40), BF16, 1)
    whole = gl.linear(x, w)
    for tokens in (*range(1, 20), *range(31, 300, 29), 127, 128, 129, 255, 256, 257):
        testing.assert_same_bits(gl.linear(x[:tokens], w), whole[:tokens])
        testing.assert_same_bits(gl.linear(x[300 - tokens :], w), whole[300 - tokens :])


def test_slices_of_the_weight_slice_the_result() -> None:  # D3
    x, w = testing.normal((5, 56), BF16, 0), testing.normal((70, 56), BF16, 1)
    dy = testing.normal((5, 70), BF16, 2)
    y, dx = gl.linear(x, w), gl.dgrad(dy, w)
    for part in (slice(0, 1), slice(3, 40), slice(64, 70)):
        testing.assert_same_bits(gl.linear(x, w[part]), y[:, part])
    for part in (slice(0, 8), slice(16, 56)):
        testing.assert_same_bits(gl.dgrad(dy, w[:, part]), dx[:, part])


def test_any_number_of_sms_gives_the_same_bits() -> None:  # D5
    x, w = testing.normal((33, 260), BF16, 0), testing.normal((130, 260), BF16, 1)
    results = []
    for sms in (1, 7, None):
        with mma(None, segment=64, num_sms=sms):
            results.append(gl.linear(x, w))
    testing.assert_same_bits(results[0], results[2])
    testing.assert_same_bits(results[1], results[2])


def test_micro_batches_accumulate_to_the_same_bits() -> None:  # D6
    dy, x = testing.normal((150, 9), BF16, 0), testing.normal((150, 20), BF16, 1)
    whole, parts = np.zeros((9, 20), np.float32), np.zeros((9, 20), np.float32)
    with mma(segment=64):
        gl.wgrad(dy, x, out=whole, accumulate=True)
        for start in range(0, 150, 64):
            gl.wgrad(dy[start : start + 64], x[start : start + 64], out=parts, accumulate=True)
    testing.assert_same_bits(parts, whole)


@pytest.mark.parametrize("splits", [1, 2])
def test_accumulation_starts_from_what_the_output_holds(splits: int) -> None:
    dy, x, held = ints(150, 41), ints(150, 36, seed=1), ints(41, 36, dtype=F32, seed=2)
    out = held.copy()
    with mma(segment=64, splits=splits):
        gl.wgrad(dy, x, out=out, accumulate=True)
    testing.assert_same_bits(out, (f8(dy).T @ f8(x) + held).astype(F32))
    rounded = ints(41, 36, seed=3)
    want = (f8(dy).T @ f8(x) + f8(rounded)).astype(BF16)
    with mma(segment=64, splits=splits):
        gl.wgrad(dy, x, out=rounded, accumulate=True)
    testing.assert_same_bits(rounded, want)


@pytest.mark.parametrize("fill", ["normal", "wide", "subnormals"])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_errors_stay_within_the_bound(dtype: Any, fill: str) -> None:
    make = getattr(testing, fill)
    x, w, dy = make((9, 77), dtype, 0), make((11, 77), dtype, 1), make((9, 11), dtype, 2)
    how = check.summation(NAMES[dtype], DeviceSpec.preset("sm_80"))
    for got, a, b in ((gl.linear(x, w), x, w.T), (gl.dgrad(dy, w), dy, w), (gl.wgrad(dy, x), dy.T, x)):
        testing.assert_within(got, f8(a) @ f8(b), testing.gemm_bound(a, b, how, out_dtype=dtype))


@pytest.mark.parametrize("out_dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
def test_bias_activation_and_preactivation(activation: str | None, out_dtype: Any) -> None:
    """In one launch, on ragged rows and columns; the pre-activation as it is without an activation."""
    x, w, b = (testing.normal(shape, BF16, seed) for seed, shape in enumerate(((35, 40), (69, 40), (69,))))
    preact = np.empty((35, 69), out_dtype)
    y = gl.linear(x, w, b, activation=activation, out_dtype=out_dtype, preact_out=preact)
    assert [family for family, _ in last_results()] == ["gemm_mma"]
    testing.assert_same_bits(preact, gl.linear(x, w, b, out_dtype=out_dtype))
    how = check.summation("bfloat16", DeviceSpec.preset("sm_80"))
    bound = testing.gemm_bound(x, w.T, how, out_dtype=out_dtype, bias=b, activation=activation)
    testing.assert_within(y, reference.activate(f8(x) @ f8(w).T + f8(b), activation), bound)
    other = gl.linear(x, w, b.astype(F32), activation=activation, out_dtype=out_dtype)
    testing.assert_same_bits(other, y)


def test_outputs_are_written_only_and_guarded() -> None:
    """What surrounds an output keeps its bytes, for 16-byte stores and for single elements."""
    x, w = ints(5, 33), ints(16, 33, seed=1)
    want = (f8(x) @ f8(w).T).astype(BF16)
    for lead in (8, 3):
        buffer = np.full((5, 32), np.nan, BF16)
        gl.linear(x, w, out=buffer[:, lead : lead + 16])
        testing.assert_same_bits(buffer[:, lead : lead + 16], want)
        assert np.isnan(buffer[:, :lead].astype(F32)).all() and np.isnan(buffer[:, lead + 16 :].astype(F32)).all()


def test_special_values_stay_in_their_row_and_column() -> None:
    x, w = testing.normal((4, 24), BF16, 0), testing.normal((5, 24), BF16, 1)
    x[1, 3], x[2, 4], w[3, 4] = np.nan, np.inf, 0.0
    with np.errstate(invalid="ignore"):
        exact = f8(x) @ f8(w).T
    y = gl.linear(x, w).astype(F32)
    assert np.array_equal(np.isnan(y), np.isnan(exact))
    assert np.array_equal(np.isposinf(y), np.isposinf(exact)) and np.array_equal(np.isneginf(y), np.isneginf(exact))


def test_a_sum_of_negative_zero_is_positive_zero() -> None:
    """Also where all products underflow from below, which the tensor core truncates to -0."""
    for inner, value, factor in ((20, -0.0, 1.0), (32, -(2.0**-100), 2.0**-100)):
        x, w = np.full((2, inner), value, BF16), np.full((3, inner), factor, BF16)
        testing.assert_same_bits(gl.linear(x, w), np.zeros((2, 3), BF16))


def test_a_swap_of_two_reduction_steps_changes_the_bits() -> None:
    """The contract is not empty: another order of k16 steps gives other bits on this data."""
    x, w = testing.normal((4, 64), BF16, 0), testing.normal((5, 64), BF16, 1)
    order = np.r_[32:48, 16:32, 0:16, 48:64]
    plain = gl.linear(x, w, out_dtype=F32)
    swapped = gl.linear(x[:, order].copy(), w[:, order].copy(), out_dtype=F32)
    assert not np.array_equal(plain.view(np.uint32), swapped.view(np.uint32))


@pytest.mark.parametrize("out_dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("op", ["linear", "dgrad", "wgrad"])
@pytest.mark.parametrize("tile", range(len(tiles())))
def test_no_bank_conflict_and_no_partial_sector(tile: int, op: str, out_dtype: Any) -> None:
    name = tiles()[tile]
    m, n = (int(extent) for extent in name.split("/")[0].split("x")[:2])
    shapes = {"linear": ((m, 64), (n, 64)), "dgrad": ((m, 64), (64, n)), "wgrad": ((64, m), (64, n))}[op]
    a, b = (aligned(ints(*shape, seed=seed)) for seed, shape in enumerate(shapes))
    with mma(name, segment=32):  # of two segments: with a running total
        getattr(gl, op)(a, b, out=aligned(np.zeros((m, n), out_dtype)))
    ((family, result),) = last_results()
    assert family == "gemm_mma"
    counters = result.counters
    assert (counters.wavefront_ratio, counters.sector_ratio) == (1.0, 1.0), str(counters)
    step = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    assert counters.mix[step][0] == (m // 16) * (n // 8) * (64 // 16)


FEW_TOKENS = "16x64x32/16x32"


@pytest.mark.parametrize("shape", [(1, 70, 200), (16, 64, 64), (17, 65, 331)], ids=str)
@pytest.mark.parametrize("arch", ["sm_80", "sm_120"])
def test_the_tile_for_few_tokens_gives_the_same_bits(arch: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    x, w, dy = (testing.normal(size, BF16, seed) for seed, size in enumerate(((m, k), (n, k), (m, n))))
    with gl.host_backend("emulator", arch=arch):
        for splits in (1, 3):
            with mma(tiles(arch)[-1], splits=splits, segment=64):
                want = gl.linear(x, w), gl.dgrad(dy, w)
            with mma(FEW_TOKENS, splits=splits, segment=64):
                testing.assert_same_bits(gl.linear(x, w), want[0])
                testing.assert_same_bits(gl.dgrad(dy, w), want[1])
        if m > 1:  # one row is contiguous both ways
            with mma(FEW_TOKENS), pytest.raises(gl.BackendError, match="few tokens"):
                gl.wgrad(dy, x)


def test_the_tile_for_few_tokens_makes_no_needless_requests() -> None:
    x, w = aligned(ints(16, 256)), aligned(ints(64, 256, seed=1))
    with mma(FEW_TOKENS):
        gl.linear(x, w, out=aligned(np.zeros((16, 64), BF16)))
    ((_, result),) = last_results()
    assert (result.counters.wavefront_ratio, result.counters.sector_ratio) == (1.0, 1.0), str(result.counters)


def test_tile_names_tell_the_candidates_apart() -> None:
    for arch in ARCHS:
        assert len(set(tiles(arch))) == len(tiles(arch)) == 5
    assert GemmMmaConfig.family == "gemm_mma"
