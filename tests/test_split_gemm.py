"""float32 accuracy through mma.sync, run: the bits of the canonical order, special values, D1 to D6, and what is refused.

The kernels run in the PTX emulator with every sanitizer on; their bits are held to bench/order.py, which was written
from the contract and knows neither tiles nor fragments. The adder is the emulator's model: no hardware confirms it yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpulinear as gl
from bench.hostile import operands
from bench.order import split_gemm
from gpulinear import gemm, reference, testing
from gpulinear.backends.emulator import last_results
from gpulinear.config import PROMOTE, SPLITS, candidates
from gpulinear.configs.mma import PLANE_TILES
from gpulinear.device import ARCHS, DeviceSpec
from gpulinear.plan import Options
from gpulinear.problem import Gemm, Matrix

from .test_kernels_compile import check

Array = np.ndarray[Any, Any]
S = 128  # a small segment, so that few elements of K are several of them
DEPTH = {"bf16x6": 32, "tf32x3": 16}  # of a k-tile
PRECISIONS = tuple(DEPTH)
MODELS = ("sm_80", "sm_90a")  # one architecture for each adder


def tile(precision: str, number: int = -1) -> str:
    """The name of one of the tiles, by default the smallest."""
    t = PLANE_TILES[number]
    return f"{t.block_m}x{t.block_n}x{DEPTH[precision]}/{t.warp_m}x{t.warp_n}"


@pytest.fixture(autouse=True)
def emulator(request: pytest.FixtureRequest, compiled: None) -> Iterator[None]:
    precision = getattr(request.node, "callspec", None) and request.node.callspec.params.get("precision")
    small = tile(precision) if precision in DEPTH else None
    with gl.host_backend("emulator", arch="sm_90a"), gemm.planning(mma(small)):
        yield


def mma(tile: str | None, **options: Any) -> Options:
    """Plan with gemm_mma also where sm_90a has another family (test_wgmma_planes_run.py)."""
    return Options(**{"family": "gemm_mma", "tile": tile, "segment": S} | options)


def arrays(tokens: int, out: int, inner: int, fill: str = "normal") -> tuple[Array, Array, Array]:
    make = getattr(testing, fill)
    shapes = ((tokens, inner), (out, inner), (tokens, out))
    x, w, dy = (make(shape, "float32", seed) for seed, shape in enumerate(shapes))
    return x, w, dy


def order(a: Array, b: Array, precision: str, arch: str = "sm_90a", start: Array | None = None) -> Array:
    return split_gemm(a, b, precision, arch, segment=S, promote=PROMOTE, start=start)


def check_bits(x: Array, w: Array, dy: Array, precision: str, arch: str) -> None:
    testing.assert_same_bits(gl.linear(x, w, precision=precision), order(x, w.T, precision, arch))
    testing.assert_same_bits(gl.dgrad(dy, w, precision=precision), order(dy, w, precision, arch))
    testing.assert_same_bits(gl.wgrad(dy, x, precision=precision), order(dy.T, x, precision, arch))


# ---- bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (65, 64, 63), (3, 70, 17), (64, 1, 300)], ids=str)
@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_bits_are_those_of_the_canonical_order(precision: str, arch: str, shape: tuple[int, int, int]) -> None:
    with gl.host_backend("emulator", arch=arch):
        check_bits(*arrays(*shape), precision, arch)


@pytest.mark.parametrize(("number", "op"), list(enumerate(("linear", "dgrad", "dgrad", "wgrad"))))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_tile_gives_these_bits(precision: str, number: int, op: str) -> None:
    """All warps of a block have outputs, and a second block has a few."""
    block_m, block_n = PLANE_TILES[number].block_m, PLANE_TILES[number].block_n
    a, b = testing.normal((block_m, 70), "float32", 0), testing.normal((70, block_n + 2), "float32", 1)
    given = {"linear": (a, b.T), "dgrad": (a, b), "wgrad": (np.ascontiguousarray(a.T), b)}[op]
    with gemm.planning(mma(tile(precision, number))):
        testing.assert_same_bits(getattr(gl, op)(*given, precision=precision), order(a, b, precision))


@pytest.mark.parametrize(
    "data", ["N(0,1) · 2^U(-30,30)", "near the largest float · 2^-12 N(0,1)", "one 2^20 outlier in each row"]
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_hostile_operands_give_these_bits_and_errors_within_the_bound(precision: str, data: str) -> None:
    a, b = operands(data, 20, 24, 200)
    got = gl.linear(a, b.T, precision=precision)
    testing.assert_same_bits(got, order(a, b, precision))
    bound = testing.gemm_bound(
        a,
        b,
        testing.tensor_core("sm_90a", precision, segment=S),
        out_dtype="float32",
        representation=testing.REPRESENTATION[precision],
        a_error=testing.operand_error(a, precision),
        b_error=testing.operand_error(b, precision),
    )
    testing.assert_within(got, a.astype(np.float64) @ b.astype(np.float64), bound)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_the_planes_hold_exactly_stays_exact(precision: str) -> None:
    """Odd 12-bit integers, no one of which a bfloat16 or a tf32 number holds; for tf32x3 those of B have 11 bits."""
    for k in (1, 2):
        a, b = testing.precision_probe(9, 10, k, 0)
        b = b if precision == "bf16x6" else (b - 1) / 2
        want = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)
        testing.assert_same_bits(gl.linear(a, b.T, precision=precision), want)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_family_has_its_own_constants(precision: str) -> None:
    """Without a test's segment: K of more than one real one."""
    x, w, _ = arrays(3, 4, 4096 + 70)
    with gemm.planning(mma(tile(precision), segment=None)):
        got = gl.linear(x, w, precision=precision)
    testing.assert_same_bits(got, split_gemm(x, w.T, precision, "sm_90a", segment=4096, promote=PROMOTE))


# ---- special values ----------------------------------------------------------------------------


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_inf_and_nan_go_where_ieee_sends_them(precision: str, arch: str) -> None:
    """Every pair of special numbers alone in a sum, then each among ordinary numbers."""
    special = np.array(
        [0, -0.0, 1, -1.5, 2.0**-149, 1e-41, 3.4028234e38, -3e38, 250.3, np.inf, -np.inf, np.nan], np.float32
    )
    x, w, _ = arrays(len(special), len(special), 40)
    with gl.host_backend("emulator", arch=arch), np.errstate(all="ignore"):
        alone = gl.linear(special[:, None], special[:, None], precision=precision)
        assert_alike(alone, special[:, None].astype(np.float64) * special.astype(np.float64))
        x[:, 33], w[:, 33] = special, special
        assert_alike(gl.linear(x, w, precision=precision), x.astype(np.float64) @ w.astype(np.float64).T)


def assert_alike(got: Array, exact: Array) -> None:
    """NaN and Inf in the same places and with the same signs as what float64 computes and float32 stores.

    But for finite sums beyond 2**136, where a product of lesser planes overflows by itself: these are not finite.
    """
    want = exact.astype(np.float32)
    beyond = np.isfinite(exact) & (np.abs(exact) > 2.0**136)
    assert not np.isfinite(got[beyond]).any()
    got, want = got[~beyond], want[~beyond]
    assert np.array_equal(np.isnan(got), np.isnan(want))
    assert np.array_equal(np.isinf(got), np.isinf(want)) and np.array_equal(got[np.isinf(got)], want[np.isinf(want)])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sums_that_cancel_are_positive_zero(precision: str) -> None:
    x, w = np.array([[1.0, -1.0]], np.float32), np.ones((2, 2), np.float32)
    testing.assert_same_bits(gl.linear(x, w, precision=precision), np.zeros((1, 2), np.float32))
    tiny = np.full((1, 1), 2.0**-140, np.float32)
    testing.assert_same_bits(gl.linear(-tiny, tiny, precision=precision), np.zeros((1, 1), np.float32))


# ---- the contract ------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["warps", "random:0", "random:1"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_schedule_gives_the_same_bits(
    precision: str, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # D1
    monkeypatch.setenv("GPULINEAR_EMULATOR_SCHEDULE", schedule)
    x, w, _ = arrays(33, 34, S + 40)
    testing.assert_same_bits(gl.linear(x, w, precision=precision), order(x, w.T, precision))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_row_bits_do_not_depend_on_the_batch(precision: str) -> None:  # D2
    row, w, _ = arrays(1, 40, 52)
    alone = gl.linear(row, w, precision=precision)
    for tokens, place, neighbour in ((2, 0, np.nan), (33, 32, np.inf), (70, 65, 3.0), (70, 3, 1e-40)):
        x = np.full((tokens, 52), neighbour, np.float32)
        x[place] = row[0]
        testing.assert_same_bits(gl.linear(x, w, precision=precision)[place], alone[0])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_slices_of_the_weight_slice_the_result(precision: str) -> None:  # D3
    x, w, dy = arrays(5, 70, 52)
    y, dx = gl.linear(x, w, precision=precision), gl.dgrad(dy, w, precision=precision)
    for part in (slice(0, 1), slice(3, 40), slice(64, 70)):
        testing.assert_same_bits(gl.linear(x, w[part], precision=precision), y[:, part])
    testing.assert_same_bits(gl.dgrad(dy, w[:, 4:28], precision=precision), dx[:, 4:28])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_splits_of_k_and_numbers_of_sms_give_the_same_bits(precision: str) -> None:  # D4, D5
    x, w, _ = arrays(3, 4, 3 * S + 5)
    want = reference.activate(order(x, w.T, precision), "relu").astype(np.float32)
    for options in ({"splits": 1}, {"splits": 2}, {"splits": 4}, {"num_sms": 1}, {"num_sms": 7}):
        with gemm.planning(mma(tile(precision), **options)):
            testing.assert_same_bits(gl.linear(x, w, activation="relu", precision=precision), want)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_micro_batches_accumulate_to_the_same_bits(precision: str) -> None:  # D6
    x, _, dy = arrays(2 * S + 10, 5, 6)
    whole = np.zeros((5, 6), np.float32)
    gl.wgrad(dy, x, out=whole, accumulate=True, precision=precision)
    testing.assert_same_bits(whole, order(dy.T, x, precision, start=np.zeros((5, 6), np.float32)))
    parts = np.zeros((5, 6), np.float32)
    for start in range(0, len(x), S):
        part = slice(start, start + S)
        gl.wgrad(dy[part], x[part], out=parts, accumulate=True, precision=precision)
    testing.assert_same_bits(parts, whole)


@pytest.mark.parametrize("view", testing.VIEWS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_view_gives_what_the_copy_gives(precision: str, view: str) -> None:
    make = testing.VIEWS[view]
    x, w, dy = arrays(6, 7, 36)
    vx, vw, vdy = (make(a, np) for a in (x, w, dy))
    check_bits(vx, vw, vdy, precision, "sm_90a")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_leading_dimensions_and_empty_ones(precision: str) -> None:
    x, w, _ = arrays(12, 7, 20)
    want = gl.linear(x, w, precision=precision)
    testing.assert_same_bits(gl.linear(x.reshape(3, 4, 20), w, precision=precision).reshape(12, 7), want)
    wide = np.full((3, 8, 20), np.nan, np.float32)
    wide[:, ::2] = x.reshape(3, 4, 20)  # rows with two strides
    testing.assert_same_bits(gl.linear(wide[:, ::2], w, precision=precision).reshape(12, 7), want)
    assert gl.linear(x[:0], w, precision=precision).shape == (0, 7)
    testing.assert_same_bits(gl.linear(x[:, :0], w[:, :0], precision=precision), np.zeros((12, 7), np.float32))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_epilogue_and_backward(precision: str) -> None:
    x, w, dy = arrays(9, 33, 40)
    bias, preact = testing.normal((33,), "float32", 5), np.empty((9, 33), np.float32)
    y = gl.linear(x, w, bias, activation="gelu", precision=precision, preact_out=preact)
    testing.assert_same_bits(preact, order(x, w.T, precision) + bias)
    grads = gl.linear_backward(dy, x, w, activation="relu", preact=preact, precision=precision)
    dz = np.where(preact > 0, dy, np.float32(0))
    testing.assert_same_bits(grads.dx, order(dz, w, precision))
    testing.assert_same_bits(grads.dw, order(dz.T, x, precision))
    testing.assert_same_bits(y, gl.linear(x, w, bias, activation="gelu", precision=precision))


# ---- plans -------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_plan_shows_the_split_passes(precision: str) -> None:
    x, w, dy = arrays(64, 32, 48)
    plan = gl.explain("linear", x, w, precision=precision)
    assert [step.family for step in plan.steps] == ["split_planes", "split_planes", "gemm_mma"]
    text = str(plan)
    assert f"split x 64x48 into {SPLITS[precision].planes}" in text and f"P={PROMOTE}" in text and precision in text
    both = gl.explain("linear_backward", dy, x, w, precision=precision, needs=("dx", "dw"))
    split = [step.note.split()[1] for step in both.steps if step.family == "split_planes"]
    # dy once, where its planes may lie as it does.
    assert sorted(split) == (["dy", "dy", "weight", "x"] if SPLITS[precision].along_k else ["dy", "weight", "x"])


@pytest.mark.parametrize("precision", ["tf32", "tf32x3", "bf16x6"])
def test_an_architecture_without_the_instructions_is_refused(precision: str) -> None:
    x, w, _ = arrays(4, 4, 4)
    out = np.full((4, 4), 7, np.float32)
    with (
        gl.host_backend("emulator", arch="sm_75"),
        pytest.raises(gl.BackendError, match=r"sm_80, this is sm_75; precision='ieee' runs everywhere"),
    ):
        gl.linear(x, w, precision=precision, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gemm_simt_does_not_take_planes_for_operands(precision: str) -> None:
    x, w, _ = arrays(8, 8, 8)
    with gemm.planning(Options(family="gemm_simt")), pytest.raises(gl.BackendError, match=precision):
        gl.linear(x, w, precision=precision)


# ---- the compiled kernels ----------------------------------------------------------------------


def variants(precision: str, arch: str, k_major_a: bool, k_major_b: bool) -> list[Any]:
    dtype = SPLITS[precision].dtype
    a = Matrix("a", 256, 256, *((256, 1) if k_major_a else (1, 256)), dtype)
    b = Matrix("b", 256, 256, *((1, 256) if k_major_b else (256, 1)), dtype)
    problem = Gemm("linear", a, b, Matrix("d", 256, 256, 256, 1, "float32"), precision)
    return [config for config, refused in candidates(problem, DeviceSpec.preset(arch), "gemm_mma") if refused is None]


@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch != "sm_75"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_kernels_fit_every_arch_without_spills(precision: str, arch: str) -> None:
    """All tiles of one layout on each arch, and all layouts of the largest tile on two."""
    for k_major_a, k_major_b in ((True, True), (True, False), (False, False)):
        found = variants(precision, arch, k_major_a, k_major_b)
        assert bool(found) == (not SPLITS[precision].along_k or (k_major_a and k_major_b))
        few = found if (k_major_a, k_major_b) == (True, True) else found[:1] if arch in MODELS else []
        for config in few:
            ptx = check(config, arch)
            assert ptx.count("mma.sync") >= 3 and "ldmatrix" in ptx


@pytest.mark.parametrize("op", ["linear", "dgrad", "wgrad"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_aligned_shapes_have_no_conflict_and_whole_sectors(precision: str, op: str) -> None:
    shapes = {"linear": ((64, 64), (64, 64)), "dgrad": ((64, 64), (64, 64)), "wgrad": ((64, 64), (64, 64))}[op]
    a, b = (aligned(testing.normal(shape, "float32", seed)) for seed, shape in enumerate(shapes))
    out = aligned(np.zeros((64, 64), np.float32))
    getattr(gl, op)(a, b, out=out, precision=precision)
    for family, result in last_results():
        assert result.counters.sector_ratio == 1.0, family
        assert result.counters.wavefront_ratio == 1.0, family


def aligned(array: Array) -> Array:
    """A copy that starts at a multiple of 256 bytes, as device memory does."""
    raw = np.zeros(array.nbytes + 256, np.uint8)
    start = -raw.ctypes.data % 256
    copy: Array = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
