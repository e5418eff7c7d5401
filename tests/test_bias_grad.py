"""db out of the wgrad's launch: the bits of ``bgrad`` in every tile, split, segment and batch, and nothing beside them.

Segments are 64 rows long here, those of ``column_sum`` too. A finding of a sanitizer is an error in any test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpulinear as gl
from gpulinear import gemm, testing
from gpulinear.backends.emulator import last_results
from gpulinear.config import MMA_TILES, WGMMA_TILES
from gpulinear.plan import Options

Array = np.ndarray[Any, Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype("float16")
F32 = np.dtype("float32")
S = 64
SMALL = "64x64x64"
WGMMA, MMA = ("gemm_wgmma", "sm_90a", SMALL), ("gemm_mma", "sm_80", "64x64x32/32x32")
FAMILIES = pytest.mark.parametrize("where", [WGMMA, MMA], ids=lambda where: where[0])
Where = tuple[str, str, str]


@pytest.fixture(autouse=True)
def emulator(compiled: None) -> Iterator[None]:
    with gl.host_backend("emulator"):
        yield


def planned(where: Where, **options: Any) -> AbstractContextManager[None]:
    """Plan with this family and tile."""
    return gemm.planning(Options(**{"family": where[0], "tile": where[2], "segment": S, **options}))


def operands(tokens: int, out: int, inner: int, dtype: Any = BF16) -> tuple[Array, Array]:
    """dy of wide exponents, whose sums depend on the order of rows, and x."""
    return testing.wide((tokens, out), dtype, 0), testing.normal((tokens, inner), dtype, 1)


def fused(where: Where, dy: Array, x: Array, **how: Any) -> gl.Grads:
    """dw and db by one GEMM launch and what finishes its slabs: no kernel reads dy apart."""
    w = np.zeros((dy.shape[-1], x.shape[-1]), dy.dtype)
    with gl.host_backend("emulator", arch=where[1]):
        grads = gl.linear_backward(dy, x, w, needs=("dw", "db"), **how)
    assert "column_sum" not in [name for name, _ in last_results()]
    return grads


@pytest.mark.parametrize(
    "where",
    [("gemm_wgmma", "sm_90a", t.name) for t in WGMMA_TILES if t.block_n % 64 == 0 and not t.swapped]
    + [("gemm_mma", "sm_80", f"{t.block_m}x{t.block_n}x32/{t.warp_m}x{t.warp_n}") for t in MMA_TILES if t.block_m > 16]
    + [("gemm_mma", "sm_120", "128x128x64/64x64")],
    ids=lambda where: where[2],
)
def test_every_tile_gives_the_bits_of_bgrad(where: Where) -> None:
    """Two rows of tiles, ragged, and two segments."""
    dy, x = operands(72, 136, 72)
    with planned(where, num_sms=3):
        testing.assert_same_bits(fused(where, dy, x).db, gl.bgrad(dy))


@pytest.mark.parametrize("splits", [1, 8])
@pytest.mark.parametrize("tokens", [2, S - 1, S, S + 1, 3 * S + 8])
@FAMILIES
def test_every_number_of_tokens(where: Where, tokens: int, splits: int) -> None:
    """All of K in one block, and a block for each segment; two rows and two columns of tiles through two CTAs."""
    dy, x = operands(tokens, 72, 72, F16)
    with planned(where, splits=splits, num_sms=2):
        grads = fused(where, dy, x)
        assert ("ordered_reduce" in [name for name, _ in last_results()]) == (splits > 1 and tokens > S)
        testing.assert_same_bits(grads.db, gl.bgrad(dy))


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_another_order_would_show(dtype: Any) -> None:
    dy, _ = operands(S, 72, 8, dtype)
    with planned(MMA):
        assert np.mean(gl.bgrad(dy, out_dtype=F32) != gl.bgrad(dy[::-1], out_dtype=F32)) > 0.5


@FAMILIES
def test_dw_is_what_it_is_without(where: Where) -> None:
    dy, x = operands(200, 72, 72)
    with planned(where, splits=2), gl.host_backend("emulator", arch=where[1]):
        testing.assert_same_bits(fused(where, dy, x).dw, gl.wgrad(dy, x))


@pytest.mark.parametrize("tokens", [40, 5 * S + 8])
def test_splits_of_several_segments(tokens: int) -> None:
    """gemm_mma: three blocks along K, two segments each."""
    dy, x = operands(tokens, 72, 8)
    with planned(MMA, splits=3):
        testing.assert_same_bits(fused(MMA, dy, x).db, gl.bgrad(dy))


def test_tf32_sums_what_dy_holds() -> None:
    """db is the sum of float32 numbers; only the product rounds them."""
    dy, x = operands(72, 72, 40, F32)
    where = ("gemm_mma", "sm_80", "64x64x16/32x32")
    for out in (70, 72):
        with planned(where):
            testing.assert_same_bits(fused(where, dy[:, :out], x, precision="tf32").db, gl.bgrad(dy[:, :out]))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(("dw_dtype", "db_dtype"), [(F32, F32), (BF16, F32), (F32, BF16)])
@FAMILIES
def test_accumulating_starts_from_what_is_there(where: Where, dw_dtype: Any, db_dtype: Any, splits: int) -> None:
    """In the order of bgrad, with db of another dtype than dw, into a part of a buffer whose rest stays."""
    dy, x = operands(2 * S + 8, 72, 40)
    held, dw = testing.normal((80,), db_dtype, 2), testing.normal((72, 40), dw_dtype, 3)
    got, want = held.copy(), held.copy()
    with planned(where, splits=splits):
        fused(where, dy, x, dw_out=dw, db_out=got[3:75], accumulate=True)
        gl.bgrad(dy, out=want[3:75], accumulate=True)
    testing.assert_same_bits(got, want)
    with planned(where, splits=splits):
        fused(where, dy, x, dw_out=dw, db_out=got[3:75])
        testing.assert_same_bits(got[3:75], gl.bgrad(dy, out_dtype=db_dtype))
    testing.assert_same_bits(got[:3], held[:3])
    testing.assert_same_bits(got[75:], held[75:])


@pytest.mark.parametrize("tile", ["128x128x64", "128x192x64/c2"])
def test_what_dw_holds_passes_by(tile: str) -> None:
    """It comes through the ring, between the k-tiles that db is summed from."""
    dy, x = operands(2 * S + 8, 136, 200)
    where, dw = ("gemm_wgmma", "sm_90a", tile), np.zeros((136, 200), F32)
    got, want = testing.normal((136,), F32, 2), testing.normal((136,), F32, 2)
    with planned(where, num_sms=2):
        fused(where, dy, x, dw_out=dw, db_out=got, accumulate=True)
        gl.bgrad(dy, out=want, accumulate=True)
    testing.assert_same_bits(got, want)


@FAMILIES
def test_micro_batches_accumulate_to_the_same_bits(where: Where) -> None:  # D6
    dy, x = operands(3 * S + 8, 40, 40)
    whole, parts = np.zeros(40, F32), np.zeros(40, F32)
    with planned(where):
        dw = np.zeros((40, 40), F32)
        fused(where, dy, x, dw_out=dw, db_out=whole, accumulate=True)
        for rows in (slice(0, S), slice(S, 3 * S), slice(3 * S, None)):
            fused(where, dy[rows], x[rows], dw_out=dw, db_out=parts, accumulate=True)
    testing.assert_same_bits(parts, whole)


@FAMILIES
def test_special_values_stay_in_their_columns(where: Where) -> None:
    """Inf, NaN, Inf - Inf, and columns of -0, whose sum from +0 is +0."""
    dy, x = testing.normal((S + 8, 72), BF16, 0), testing.normal((S + 8, 40), BF16, 1)
    dy[3, 1], dy[70, 2], dy[4, 66], dy[68, 66], dy[:, 7] = np.inf, np.nan, np.inf, -np.inf, -0.0
    with planned(where), np.errstate(invalid="ignore"):
        db = fused(where, dy, x).db
        testing.assert_same_bits(db, gl.bgrad(dy))
    assert np.isposinf(db[1]) and np.isnan(db[[2, 66]]).all() and not np.signbit(db[7])
    assert np.isfinite(np.delete(db.astype(F32), [1, 2, 66])).all()


@pytest.mark.parametrize("schedule", ["warps", "random:0", "random:1", "random:2"])
@pytest.mark.parametrize(
    "where",
    [("gemm_wgmma", "sm_90a", "128x128x64"), ("gemm_wgmma", "sm_90a", "128x192x64/c2"), MMA],
    ids=lambda w: w[2],
)
def test_every_schedule_gives_the_same_bits(
    where: Where, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # D1, and D5: one CTA or cluster does all
    dy, x = operands(200, 136, 136 if where[2] == "128x128x64" else 40)
    monkeypatch.setenv("GPULINEAR_EMULATOR_SCHEDULE", schedule)
    with planned(where, num_sms=2 if "/c2" in where[2] else 1):
        db = fused(where, dy, x).db
    with planned(where):
        testing.assert_same_bits(db, gl.bgrad(dy))


@pytest.mark.parametrize("view", ["slice", "reversed"])
@FAMILIES
def test_rows_of_any_pitch(where: Where, view: str) -> None:
    """An odd number of columns at an odd place, and rows from the last to the first: in place, or through aligned copies."""
    wide, x = operands(72, 80, 40)
    dy = wide[:, 3:74] if view == "slice" else wide[::-1, :72]
    with planned(where):
        testing.assert_same_bits(fused(where, dy, x).db, gl.bgrad(dy))


# ---- plans -------------------------------------------------------------------------------------


def steps(dy: Any, inner: int, arch: str, **how: Any) -> list[tuple[str, str]]:
    x = gl.ShapeDtype((*dy.shape[:-1], inner), dy.dtype)
    w = gl.ShapeDtype((dy.shape[-1], inner), dy.dtype)
    return [(step.family, step.note) for step in gl.explain("linear_backward", dy, x, w, arch=arch, **how).steps]


def test_a_plan_says_where_db_comes_from() -> None:
    dy = gl.ShapeDtype((4096, 512), BF16)
    for arch, family in (("sm_90a", "gemm_wgmma"), ("sm_80", "gemm_mma")):
        with gemm.planning(Options(joint=True)):
            ((name, note),) = steps(dy, 512, arch)
        assert name == f"joint_{family}" and note.count(", and db") == 1
        with gemm.planning(Options(joint=False)):
            assert [name for name, _ in steps(dy, 512, arch)] == [family, family]
            (_, note) = steps(dy, 512, arch)[-1]
            assert note.startswith("wgrad") and note.endswith(", and db")
            assert not steps(dy, 512, arch, needs=("dx", "dw"))[-1][1].endswith("db")
        apart = steps(dy, 512, arch, needs=("dx", "db"))
        assert sorted(name for name, _ in apart) == ["column_sum", family]


@pytest.mark.parametrize(
    ("dy", "inner", "arch", "how", "why"),
    [
        (np.zeros((64, 72), BF16, order="F"), 8, "sm_80", {}, "dy is read along tokens"),
        (np.zeros((64, 72), F32), 8, "sm_80", {}, "gemm_simt"),
        (np.zeros((64, 72), F32), 8, "sm_80", {"precision": "bf16x6"}, "planes of bf16x6"),
        (np.zeros((64, 72), BF16), 0, "sm_80", {}, "nothing to multiply"),
        (np.zeros((0, 72), BF16), 8, "sm_90a", {}, "nothing to multiply"),
    ],
    ids=["column-major", "float32", "planes", "no inputs", "no tokens"],
)
def test_what_the_wgrad_cannot_sum_is_summed_apart(dy: Array, inner: int, arch: str, how: Any, why: str) -> None:
    found = dict(steps(dy, inner, arch, needs=("dw", "db"), **how))
    assert why in found["column_sum"]
    ones = np.ones(dy.shape, dy.dtype, order="F" if dy.flags.f_contiguous else "C")
    with gl.host_backend("emulator", arch=arch):
        x, w = np.ones((len(dy), inner), dy.dtype), np.ones((72, inner), dy.dtype)
        db = gl.linear_backward(ones, x, w, needs=("dw", "db"), **how).db
    testing.assert_same_bits(db, np.full(72, len(dy), dy.dtype))


@pytest.mark.parametrize(
    ("tile", "order", "why"), [("64x64x64/swap", "C", "side of N"), (SMALL, "F", "dy is read along tokens")], ids=str
)
def test_what_a_tile_of_wgmma_leaves_to_column_sum(tile: str, order: Any, why: str) -> None:
    with gemm.planning(Options(tile=tile)):
        found = dict(steps(np.zeros((64, 72), BF16, order), 8, "sm_90a", needs=("dw", "db")))
    assert why in found["column_sum"] and "and db" not in found["gemm_wgmma"]
