"""float32 operands on Hopper's tensor cores, run: gemm_wgmma over the planes of tf32, tf32x3 and bf16x6, every sanitizer on.

The bits are held to bench/order.py, which was written from the contract and knows neither tiles nor descriptors, and to
gemm_mma's. The adder is the emulator's model of one: that wgmma and mma.sync add alike is for hardware to confirm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from bench.hostile import operands
from bench.order import split_gemm
from gpulinear import gemm, reference, testing
from gpulinear.backends import emulator as backend
from gpulinear.calls import BUILDERS
from gpulinear.config import PROMOTE, SPLITS, WGMMA_TILES, GemmWgmmaConfig
from gpulinear.configs.wgmma import PLANE_TILES
from gpulinear.device import DeviceSpec
from gpulinear.emulator import tensorcore
from gpulinear.plan import Options

from .layers import f8, ints
from .test_kernel_counters import aligned
from .test_split_gemm import arrays, assert_alike

Array = np.ndarray[Any, Any]
F32 = np.dtype("float32")
S = 128  # a small segment, so that few elements of K are several of them
DEPTH = {"tf32": 32, "tf32x3": 32, "bf16x6": 64}  # of a k-tile
PRECISIONS = tuple(DEPTH)
OPS = ("linear", "dgrad", "wgrad")


@pytest.fixture(autouse=True)
def emulator(compiled: None) -> Iterator[None]:
    with gl.host_backend("emulator", arch="sm_90a"):
        yield


def wgmma(precision: str, rows: str = "64x64", **options: Any) -> AbstractContextManager[None]:
    """Plan with a tile, by default the one of 64 x 64, and the small segment."""
    extents, _, form = rows.partition("/")
    tile = f"{extents}x{DEPTH[precision]}" + (f"/{form}" if form else "")
    return gemm.planning(Options(**{"tile": tile, "segment": S, "num_sms": 3} | options))


def order(a: Array, b: Array, precision: str, start: Array | None = None) -> Array:
    promote = None if precision == "tf32" else PROMOTE
    return split_gemm(a, b, precision, "sm_90a", segment=S, promote=promote, start=start)


def given(op: str, a: Array, b: Array) -> tuple[Array, Array]:
    """The contiguous arrays of a layer whose product is A B."""
    return {
        "linear": (a, np.ascontiguousarray(b.T)),
        "dgrad": (a, b),
        "wgrad": (np.ascontiguousarray(a.T), b),
    }[op]


def check_bits(x: Array, w: Array, dy: Array, precision: str) -> None:
    testing.assert_same_bits(gl.linear(x, w, precision=precision), order(x, w.T, precision))
    testing.assert_same_bits(gl.dgrad(dy, w, precision=precision), order(dy, w, precision))
    testing.assert_same_bits(gl.wgrad(dy, x, precision=precision), order(dy.T, x, precision))


# ---- bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_exact_integers(precision: str) -> None:
    x, w, dy = ints(65, 70), ints(63, 70, seed=1), ints(65, 63, seed=2)
    with wgmma(precision):
        y = gl.linear(x, w, precision=precision)
        testing.assert_same_bits(y, (f8(x) @ f8(w).T).astype(F32))
        testing.assert_same_bits(gl.linear(np.asfortranarray(x), w, precision=precision), y)
        testing.assert_same_bits(gl.dgrad(dy, w, precision=precision), (f8(dy) @ f8(w)).astype(F32))
        testing.assert_same_bits(gl.wgrad(dy, x, precision=precision), (f8(dy).T @ f8(x)).astype(F32))
    assert [family for family, _ in backend.last_results()] == ["split_planes", "split_planes", "gemm_wgmma"]


@pytest.mark.parametrize("shape", [(1, 1, 1), (64, 64, 64), (65, 63, 129), (3, 70, 2 * S + 7), (150, 1, 33)], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_bits_are_those_of_the_canonical_order(precision: str, shape: tuple[int, int, int]) -> None:
    """At the edges of tiles, k-tiles, chains and segments; any width, as planes are aligned whatever the operands are."""
    with wgmma(precision):
        check_bits(*arrays(*shape), precision)


def test_the_chain_of_planes_is_the_contract() -> None:
    """Written out: of each 64 elements of K a chain of k16 steps from +0, in each step six products, the smallest first; the
    chains of a segment added to +0 and to each other in float32, then the segments."""
    x, w, _ = arrays(5, 16, S + 70)
    a, b = (
        [plane.view(np.uint32) >> 16 for plane in reference.planes(m, "bf16x6")]
        for m in (np.pad(x, ((0, 0), (0, 10))), np.pad(w, ((0, 0), (0, 10))).T.copy())
    )
    total = np.zeros((5, 16), F32)
    for segment in (range(0, S, 64), range(S, x.shape[1], 64)):
        summed = np.zeros((5, 16), F32)
        for first in segment:
            chain = np.zeros((5, 16), F32)
            for k in range(first, min(first + 64, a[0].shape[1]), 16):
                for i, j in ((2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0)):
                    left, right = a[i][:, k : k + 16].astype(np.uint16), b[j][k : k + 16].astype(np.uint16)
                    chain = tensorcore.multiply_add(left, right, chain, "bf16", "sm_90a")
            summed = summed + chain
        total = total + summed
    with wgmma("bf16x6"):
        testing.assert_same_bits(gl.linear(x, w, precision="bf16x6"), total)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bits_are_those_of_gemm_mma(precision: str) -> None:
    x, w, dy = arrays(20, 33, S + 24)
    for op, operands_ in (("linear", (x, w)), ("dgrad", (dy, w)), ("wgrad", (dy, x))):
        with gemm.planning(Options(family="gemm_mma", segment=S)):
            want = getattr(gl, op)(*operands_, precision=precision)
            assert [family for family, _ in backend.last_results()][-1] == "gemm_mma"
        with wgmma(precision):
            testing.assert_same_bits(getattr(gl, op)(*operands_, precision=precision), want)


# Every tile of planes; of tf32 the largest tiles and the smallest: test_wgmma_run.py has the others, in bytes the same.
TF32_TILES = [tile for tile in WGMMA_TILES if tile.name in ("128x256x64/c2", "128x208x64", "16x64x64/swap")]
TILES = [
    (precision, tile, op)
    for precision, tiles in (("tf32", TF32_TILES), ("tf32x3", PLANE_TILES), ("bf16x6", PLANE_TILES))
    for number, tile in enumerate(tiles)
    for op in [OPS[number % 3]]
]


@pytest.mark.parametrize(("precision", "tile", "op"), TILES, ids=lambda v: getattr(v, "name", v))
def test_every_tile_gives_these_bits(precision: str, tile: Any, op: str) -> None:
    """All rows and columns of a tile, and a few of the next one in each direction; two segments."""
    m, n = tile.block_m * tile.cluster + 3, tile.block_n + 2
    a, b = testing.normal((m, S + 6), F32, 0), testing.normal((S + 6, n), F32, 1)
    with wgmma(precision, tile.name.replace("x64/", "/").removesuffix("x64"), num_sms=4):
        testing.assert_same_bits(getattr(gl, op)(*given(op, a, b), precision=precision), order(a, b, precision))


def test_the_largest_tile_in_the_other_majors() -> None:
    a, b = testing.normal((130, 70), F32, 0), testing.normal((70, 3), F32, 1)
    with wgmma("bf16x6", "128x128"):
        testing.assert_same_bits(gl.wgrad(*given("wgrad", a, b), precision="bf16x6"), order(a, b, "bf16x6"))
        testing.assert_same_bits(gl.dgrad(b.T, a.T, precision="bf16x6"), order(b.T, a.T, "bf16x6"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_family_has_its_own_constants(precision: str) -> None:
    """Without a test's segment: K of more than one real one."""
    x, w, _ = arrays(3, 4, 4096 + 70)
    got = gl.linear(x, w, precision=precision)
    promote = None if precision == "tf32" else PROMOTE
    testing.assert_same_bits(got, split_gemm(x, w.T, precision, "sm_90a", segment=4096, promote=promote))


def test_one_slot_is_enough_where_there_is_no_room_for_two() -> None:
    """Of 99 KB the ring gets one slot: its k-tile is a whole chain, after which the slot is free."""
    spec = replace(DeviceSpec.preset("sm_90a"), smem_per_block_optin=99 * 1024, smem_per_sm=100 * 1024)
    x, w, _ = arrays(66, 65, S + 70)
    out = np.empty((66, 65), F32)
    call = BUILDERS["linear"](x, w, out=out, precision="bf16x6")
    with wgmma("bf16x6"):
        plan = gemm.plan_call(call, spec)
        assert isinstance(plan.steps[-1].config, GemmWgmmaConfig) and plan.steps[-1].config.stages == 1
        backend.execute(plan, call.problems, call.arrays)
    testing.assert_same_bits(out, order(x, w.T, "bf16x6"))


# ---- hostile operands and special values -------------------------------------------------------


@pytest.mark.parametrize(
    "data", ["N(0,1) · 2^U(-30,30)", "near the largest float · 2^-12 N(0,1)", "one 2^20 outlier in each row"]
)
@pytest.mark.parametrize("precision", ["tf32x3", "bf16x6"])
def test_hostile_operands_give_these_bits_and_errors_within_the_bound(precision: str, data: str) -> None:
    a, b = operands(data, 20, 24, 200)
    with wgmma(precision):
        got = gl.linear(a, b.T, precision=precision)
    testing.assert_same_bits(got, order(a, b, precision))
    check_error(got, a, b, precision)


@pytest.mark.parametrize("fill", ["normal", "wide", "subnormals"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_errors_stay_within_the_bound(precision: str, fill: str) -> None:
    x, w, dy = arrays(9, 11, 77, fill)
    with wgmma(precision):
        check_error(gl.linear(x, w, precision=precision), x, w.T, precision)
        check_error(gl.dgrad(dy, w, precision=precision), dy, w, precision)
        check_error(gl.wgrad(dy, x, precision=precision), dy.T, x, precision)


def check_error(got: Array, a: Array, b: Array, precision: str) -> None:
    bound = testing.gemm_bound(
        a,
        b,
        testing.tensor_core("sm_90a", precision, segment=S),
        out_dtype="float32",
        representation=testing.REPRESENTATION[precision],
        a_error=testing.operand_error(a, precision),
        b_error=testing.operand_error(b, precision),
    )
    testing.assert_within(got, f8(a) @ f8(b), bound)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inf_and_nan_go_where_ieee_sends_them(precision: str) -> None:
    """Every pair of special numbers alone in a sum, then each among ordinary numbers."""
    special = np.array(
        [0, -0.0, 1, -1.5, 2.0**-149, 1e-41, 3.4028234e38, -3e38, 250.3, np.inf, -np.inf, np.nan], np.float32
    )
    x, w, _ = arrays(len(special), len(special), 40)
    # tf32 makes Inf of the largest float, and 0 of the smallest.
    exact = f8(reference.round_tf32(special)) if precision == "tf32" else f8(special)
    with wgmma(precision), np.errstate(all="ignore"):
        alone = gl.linear(special[:, None], special[:, None], precision=precision)
        assert_alike(alone, exact[:, None] * exact)
        x[:, 33], w[:, 33] = special, special
        a, b = f8(x), f8(w)
        a[:, 33], b[:, 33] = exact, exact
        assert_alike(gl.linear(x, w, precision=precision), a @ b.T)


# ---- the contract ------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["warps", "random:0", "random:1"])
@pytest.mark.parametrize(("precision", "rows"), [("bf16x6", "128x128"), ("tf32x3", "64x64"), ("tf32", "16x64/swap")])
def test_every_schedule_gives_the_same_bits(
    precision: str, rows: str, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # D1
    monkeypatch.setenv("GPULINEAR_EMULATOR_SCHEDULE", schedule)
    x, w, _ = arrays(33, 67, S + 40)
    with wgmma(precision, rows):
        testing.assert_same_bits(gl.linear(x, w, precision=precision), order(x, w.T, precision))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_row_bits_do_not_depend_on_the_batch(precision: str) -> None:  # D2
    row, w, _ = arrays(1, 40, 52)
    with wgmma(precision):
        alone = gl.linear(row, w, precision=precision)
    for tokens, place, neighbour, rows in (
        (2, 0, np.nan, "64x64"),
        (17, 16, np.inf, "16x64/swap"),
        (70, 65, 1e-40, "64x64"),
    ):
        x = np.full((tokens, 52), neighbour, F32)
        x[place] = row[0]
        with wgmma(precision, rows):
            testing.assert_same_bits(gl.linear(x, w, precision=precision)[place], alone[0])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_slices_of_the_weight_slice_the_result(precision: str) -> None:  # D3, of any width
    x, w, dy = arrays(5, 70, 52)
    with wgmma(precision):
        y, dx = gl.linear(x, w, precision=precision), gl.dgrad(dy, w, precision=precision)
        for part in (slice(0, 1), slice(3, 40), slice(64, 70)):
            testing.assert_same_bits(gl.linear(x, w[part], precision=precision), y[:, part])
        testing.assert_same_bits(gl.dgrad(dy, w[:, 3:28], precision=precision), dx[:, 3:28])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_splits_of_k_and_numbers_of_sms_give_the_same_bits(precision: str) -> None:  # D4, D5
    x, w, _ = arrays(70, 65, 2 * S + 5)
    want = np.maximum(order(x, w.T, precision), np.float32(0))
    for options in ({"splits": 1, "num_sms": 1}, {"splits": 3, "num_sms": 7}):
        with wgmma(precision, **options):
            testing.assert_same_bits(gl.linear(x, w, activation="relu", precision=precision), want)
    assert [family for family, _ in backend.last_results()][-2:] == ["gemm_wgmma", "ordered_reduce"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_micro_batches_accumulate_to_the_same_bits(precision: str) -> None:  # D6
    x, _, dy = arrays(2 * S + 10, 5, 8)
    whole, parts = np.zeros((5, 8), F32), np.zeros((5, 8), F32)
    with wgmma(precision):
        gl.wgrad(dy, x, out=whole, accumulate=True, precision=precision)
        testing.assert_same_bits(whole, order(dy.T, x, precision, start=np.zeros((5, 8), F32)))
        for start in range(0, len(x), S):
            part = slice(start, start + S)
            gl.wgrad(dy[part], x[part], out=parts, accumulate=True, precision=precision)
    testing.assert_same_bits(parts, whole)


@pytest.mark.parametrize("view", testing.VIEWS)
def test_any_view_gives_what_the_copy_gives(view: str) -> None:
    make = testing.VIEWS[view]
    for number, precision in enumerate(PRECISIONS):
        x, w, dy = arrays(6, 7, 36)
        op, operands_ = (("linear", (x, w)), ("dgrad", (dy, w)), ("wgrad", (dy, x)))[number]
        with wgmma(precision):
            want = getattr(gl, op)(*operands_, precision=precision)
            testing.assert_same_bits(getattr(gl, op)(*(make(a, np) for a in operands_), precision=precision), want)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_epilogue_and_backward(precision: str) -> None:
    x, w, dy = arrays(9, 33, 40)
    bias, preact = testing.normal((33,), F32, 5), np.empty((9, 33), F32)
    with wgmma(precision):
        y = gl.linear(x, w, bias, activation="gelu", precision=precision, preact_out=preact)
        testing.assert_same_bits(preact, order(x, w.T, precision) + bias)
        testing.assert_same_bits(y, gl.linear(x, w, bias, activation="gelu", precision=precision))
        grads = gl.linear_backward(dy, x, w, activation="relu", preact=preact, precision=precision)
        apart = gl.linear_backward(dy, x, w, needs=("dw", "db"), precision=precision)
    testing.assert_same_bits(apart.db, gl.bgrad(dy), what="db is the sum of dy, not of its planes")
    dz = np.where(preact > 0, dy, np.float32(0))
    testing.assert_same_bits(grads.dx, order(dz, w, precision))
    testing.assert_same_bits(grads.dw, order(dz.T, x, precision))


# ---- plans -------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_plan_shows_planes_whatever_the_alignment(precision: str) -> None:
    for shape in ((64, 32, 48), (3, 5, 7)):
        x, w, _ = arrays(*shape)
        plan = gl.explain("linear", x, w, precision=precision)
        assert [step.family for step in plan.steps] == ["split_planes", "split_planes", "gemm_wgmma"]
        text = str(plan)
        assert f"into {SPLITS[precision].planes} {SPLITS[precision].dtype} planes for {precision}" in text
        how = precision if precision == "tf32" else f"{precision} over planes, P={PROMOTE}"
        assert f"{'x'.join(map(str, (shape[0], shape[1], shape[2])))} {how}" in text


def test_planes_of_the_gradient_of_the_output_serve_both_products() -> None:
    x, w, dy = arrays(64, 32, 48)
    for precision in PRECISIONS:
        both = gl.explain("linear_backward", dy, x, w, precision=precision, needs=("dx", "dw"))
        split = [step.note.split()[1] for step in both.steps if step.family == "split_planes"]
        assert sorted(split) == (["dy", "dy", "weight", "x"] if SPLITS[precision].along_k else ["dy", "weight", "x"])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_other_architectures_keep_gemm_mma(precision: str) -> None:
    x, w, _ = arrays(8, 8, 8)
    for arch in ("sm_80", "sm_100", "sm_120"):
        with gl.host_backend("emulator", arch=arch):
            assert gl.explain("linear", x, w, precision=precision).steps[-1].family == "gemm_mma"
    with (
        gl.host_backend("emulator", arch="sm_80"),
        gemm.planning(Options(family="gemm_wgmma")),
        pytest.raises(gl.BackendError, match="wgmma needs sm_90a, this is sm_80"),
    ):
        gl.linear(x, w, precision=precision)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_aligned_shapes_have_no_conflict_and_whole_sectors(precision: str, op: str) -> None:
    a, b = (aligned(testing.normal((64, 64), F32, seed)) for seed in (0, 1))
    with wgmma(precision):
        getattr(gl, op)(a, b, out=aligned(np.zeros((64, 64), F32)), precision=precision)
    for family, result in backend.last_results():
        assert (result.counters.sector_ratio, result.counters.wavefront_ratio) == (1.0, 1.0), family
