"""gemm_wgmma, run in the emulator with every sanitizer: exact integers, the model's bits, the numeric contract.

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
from gpulinear import gemm, reference, testing
from gpulinear.backends.emulator import last_results
from gpulinear.config import WGMMA_TILES
from gpulinear.configs.wgmma import WgmmaTile
from gpulinear.emulator import tensorcore
from gpulinear.plan import Options

from . import layers
from .layers import check_exact, f8

Array = np.ndarray[Any, Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
ints = partial(layers.ints, dtype=BF16)
F16 = np.dtype("float16")
F32 = np.dtype("float32")
SMALL = "64x64x64"


@pytest.fixture(autouse=True)
def emulator(compiled: None) -> Iterator[None]:
    with gl.host_backend("emulator", arch="sm_90a"):
        yield


def wgmma(tile: str | None = SMALL, **options: Any) -> AbstractContextManager[None]:
    """Plan with gemm_wgmma, whatever family the problem belongs to."""
    return gemm.planning(Options(family="gemm_wgmma", tile=tile, **options))


def test_the_four_pairs_of_majors_are_read_in_place() -> None:
    x, w, dy = gl.ShapeDtype((72, 80), BF16), gl.ShapeDtype((88, 80), BF16), gl.ShapeDtype((72, 88), BF16)
    with wgmma():
        plans = [gl.explain("linear", x, w), gl.explain("dgrad", dy, w), gl.explain("wgrad", dy, x)]
    majors = [(plan.steps[0].config.k_major_a, plan.steps[0].config.k_major_b) for plan in plans]
    assert majors == [(True, True), (True, False), (False, False)]
    assert all(len(plan.steps) == 1 for plan in plans)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_exact_integers(dtype: Any) -> None:
    with wgmma(segment=128, num_sms=3):
        check_exact(136, 72, 200, dtype)


SHAPES = [(1, 1, 1), (1, 8, 8), (8, 1, 64), (63, 65, 7), (64, 64, 64), (65, 63, 65), (67, 127, 61), (129, 3, 131)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_integers_at_the_edges_of_tiles(shape: tuple[int, int, int]) -> None:
    """Odd widths go through aligned copies, so that every edge of every operand is met."""
    with wgmma(segment=64, num_sms=2):
        check_exact(*shape, BF16)


@pytest.mark.parametrize("inner", [64, 200])
@pytest.mark.parametrize("tile", WGMMA_TILES, ids=lambda tile: tile.name)
def test_every_tile_gives_the_same_bits(tile: WgmmaTile, inner: int) -> None:
    """Ragged in both directions and, for clusters, with an odd number of rows of tiles; one segment and four. A CTA has more
    than one tile."""
    tokens, out = tile.block_m * tile.cluster + 8, tile.block_n + 24
    x, w = testing.normal((tokens, inner), BF16, 0), testing.normal((out, inner), BF16, 1)
    b = testing.normal((out,), BF16, 2)
    results = []
    for choice in (SMALL, tile.name):
        preact = np.empty((tokens, out), BF16)
        with wgmma(choice, segment=64, num_sms=2):
            results.append((gl.linear(x, w, b, activation="relu", preact_out=preact), preact))
    for got, want in zip(results[1], results[0], strict=True):
        testing.assert_same_bits(got, want)


@pytest.mark.parametrize("tile", ["128x256x64/c2", "128x192x64", "128x128x64"])
def test_large_tiles_in_the_other_majors(tile: str) -> None:
    x, w, dy = ints(200, 264), ints(328, 264, seed=1), ints(200, 328, seed=2)
    with wgmma(tile, segment=128, num_sms=4):
        testing.assert_same_bits(gl.dgrad(dy, w), (f8(dy) @ f8(w)).astype(BF16))
        testing.assert_same_bits(gl.wgrad(dy, x), (f8(dy).T @ f8(x)).astype(BF16))
        with pytest.raises(gl.BackendError, match="64 columns"), wgmma("128x208x64"):
            gl.dgrad(dy, w)


@pytest.mark.parametrize("tokens", [1, 15, 33])
@pytest.mark.parametrize("tile", ["16x64x64/swap", "32x64x64/swap", "64x64x64/swap"])
def test_few_tokens_with_the_weight_on_the_row_side(tile: str, tokens: int) -> None:
    x, w, dy = ints(tokens, 136), ints(72, 136, seed=1), ints(tokens, 72, seed=2)
    b, preact = ints(72, seed=3), np.empty((tokens, 72), BF16)
    exact = f8(x) @ f8(w).T
    for splits in (1, 3):
        with wgmma(tile, segment=64, splits=splits, num_sms=3):
            y = gl.linear(x, w, b, activation="relu", preact_out=preact)
            testing.assert_same_bits(y, np.maximum(exact + f8(b), 0).astype(BF16))
            testing.assert_same_bits(preact, (exact + f8(b)).astype(BF16))
            testing.assert_same_bits(gl.linear(x, w, out_dtype="float32"), exact.astype(F32))
            testing.assert_same_bits(gl.dgrad(dy, w), (f8(dy) @ f8(w)).astype(BF16))


@pytest.mark.parametrize("schedule", ["warps", "random:0", "random:1", "random:2"])
@pytest.mark.parametrize("tile", [SMALL, "128x128x64", "128x256x64/c2", "16x64x64/swap"])
def test_every_schedule_gives_the_same_bits(tile: str, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, b = ints(264, 200), ints(136, 200, seed=1), ints(136, seed=2)
    preact = np.empty((264, 136), BF16)
    monkeypatch.setenv("GPULINEAR_EMULATOR_SCHEDULE", schedule)
    with wgmma(tile, segment=128, num_sms=2):
        y = gl.linear(x, w, b, activation="relu", preact_out=preact)
    exact = f8(x) @ f8(w).T + f8(b)
    testing.assert_same_bits(y, np.maximum(exact, 0).astype(BF16))
    testing.assert_same_bits(preact, exact.astype(BF16))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_the_chain_is_the_contract(dtype: Any) -> None:
    """Bit for bit: in each segment a chain of wgmma steps from +0, then float32 additions, ascending."""
    x, w = testing.normal((5, 328), dtype, 0), testing.normal((16, 328), dtype, 1)
    kind = "bf16" if dtype == BF16 else "f16"
    total = np.zeros((5, 16), np.float32)
    for first in range(0, 328, 128):
        a, b = x[:, first : first + 128], w[:, first : first + 128].T
        zero = np.zeros((5, 16), np.float32)
        total += tensorcore.multiply_add(a.view(np.uint16), b.view(np.uint16), zero, kind, "sm_90a")
    with wgmma(segment=128):
        testing.assert_same_bits(gl.linear(x, w, out_dtype="float32"), total)
        testing.assert_same_bits(gl.linear(x, w), total.astype(dtype))
    with wgmma(segment=64):
        assert (gl.linear(x, w, out_dtype="float32") != total).any(), "another S gives other bits on this data"


@pytest.mark.parametrize("fill", ["normal", "wide", "subnormals"])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_errors_stay_within_the_bound(dtype: Any, fill: str) -> None:
    make = getattr(testing, fill)
    options = {"exponent": 6} if fill == "wide" and dtype == F16 else {}
    x, w, dy = (
        make((24, 200), dtype, 0, **options),
        make((16, 200), dtype, 1, **options),
        make((24, 16), dtype, 2, **options),
    )
    how = testing.tensor_core("sm_90a")
    with wgmma():
        for got, a, b in ((gl.linear(x, w), x, w.T), (gl.dgrad(dy, w), dy, w), (gl.wgrad(dy, x), dy.T, x)):
            testing.assert_within(got, f8(a) @ f8(b), testing.gemm_bound(a, b, how, out_dtype=dtype))


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float32"])
def test_epilogues(out_dtype: str, activation: str) -> None:
    """In boxes of 64 columns and of 32: the pre-activation is the plain result, y within its bound."""
    x, w, b = testing.normal((70, 80), BF16, 0), testing.normal((72, 80), BF16, 1), testing.normal((72,), F32, 2)
    kind = BF16 if out_dtype == "bfloat16" else F32
    preact = np.empty((70, 72), kind)
    with wgmma():
        y = gl.linear(x, w, b, activation=activation, preact_out=preact, out_dtype=out_dtype)
        testing.assert_same_bits(preact, gl.linear(x, w, b, out_dtype=out_dtype))
        testing.assert_same_bits(y, gl.linear(x, w, b, activation=activation, out_dtype=out_dtype))
    how = testing.tensor_core("sm_90a")
    bound = testing.gemm_bound(x, w.T, how, out_dtype=kind, bias=b, activation=activation)
    testing.assert_within(y, reference.activate(f8(x) @ f8(w).T + f8(b), activation), bound)


def accumulates(tokens: int, kind: Any = F32) -> None:
    """Ragged in both directions and, for clusters, with an odd number of rows of tiles."""
    dy, x, held = ints(tokens, 264), ints(tokens, 72, seed=1), ints(264, 72, dtype=kind, seed=2)
    out = held.copy()
    gl.wgrad(dy, x, out=out, accumulate=True)
    testing.assert_same_bits(out, (f8(dy).T @ f8(x) + f8(held)).astype(kind))


@pytest.mark.parametrize(
    ("tile", "kind"),
    [
        *((tile, kind) for tile in ("128x128x64", "128x192x64", "64x64x64/swap") for kind in (BF16, F32)),
        ("128x256x64/c2", F32),
        ("64x256x64", F32),
    ],
    ids=str,
)
def test_accumulating_adds_to_what_is_there(tile: str, kind: Any) -> None:
    """K of one and of several segments: the old values come after the first, whatever follows."""
    for tokens in (64, 200):
        with wgmma(tile, segment=64, num_sms=2):
            accumulates(tokens, kind)


def test_accumulating_over_splits_of_k_adds_the_old_values_once() -> None:
    for tile in (SMALL, "64x64x64/swap"):
        with wgmma(tile, segment=64, splits=4):
            accumulates(200)
    assert [name for name, _ in last_results()] == ["gemm_wgmma", "ordered_reduce"]


@pytest.mark.parametrize("schedule", ["lockstep", "warps", "random:0", "random:1"])
def test_old_values_turn_the_ring_over_with_the_k_tiles(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten tiles of three or five slots through one block's ring of twelve; and more slots for D than the ring has."""
    monkeypatch.setenv("GPULINEAR_EMULATOR_SCHEDULE", schedule)
    for tile, kind, segment in ((SMALL, F32, 128), (SMALL, BF16, 64), ("128x256x64/c2", F32, 64)):
        with wgmma(tile, segment=segment, num_sms=1 if tile == SMALL else 2):
            accumulates(128, kind)


def test_accumulating_rounds_once_and_keeps_subnormals() -> None:
    dy, x = testing.normal((64, 64), BF16, 0), testing.normal((64, 72), BF16, 1)
    for scale, held in ((1.0, testing.normal((64, 72), F32, 2)), (2.0**-68, testing.subnormals((64, 72), F32, 2))):
        small = [(array * scale).astype(BF16) for array in (dy, x)]
        out = held.copy()
        with wgmma():
            total = held + gl.wgrad(*small, out_dtype="float32")
            gl.wgrad(*small, out=out, accumulate=True)
        testing.assert_same_bits(out, total)
    assert (abs(out) > 0).any() and (abs(out) < np.finfo(F32).tiny).any()


@pytest.mark.parametrize(("first", "width", "by_tma"), [(4, 96, True), (3, 95, False)])
def test_accumulating_outputs_at_any_place_and_nothing_beside_them(first: int, width: int, by_tma: bool) -> None:
    dy, x, held = ints(40, 70), ints(40, 66, seed=1), ints(70, 66, dtype=F32, seed=2)
    raw = np.full(70 * width + 4, np.nan, F32)
    start = -raw.ctypes.data % 16 // 4
    buffer = raw[start : start + 70 * width].reshape(70, width)
    out = buffer[:, first : first + 66]
    out[...] = held
    with wgmma():
        assert gl.explain("wgrad", dy, x, out=out, accumulate=True).steps[-1].config.tma_store == by_tma
        gl.wgrad(dy, x, out=out, accumulate=True)
    testing.assert_same_bits(out, (f8(dy).T @ f8(x) + f8(held)).astype(F32))
    assert np.isnan(np.delete(buffer, np.s_[first : first + 66], axis=1)).all()


def test_row_bits_do_not_depend_on_the_batch() -> None:  # D2
    w, row = testing.normal((72, 136), BF16, 0), testing.normal((1, 136), BF16, 1)
    with wgmma(segment=64):
        alone = gl.linear(row, w)
    for tokens, place, neighbour, tile in (
        (2, 1, np.nan, SMALL),
        (70, 66, np.inf, SMALL),
        (130, 64, 3.0, "128x128x64"),
        (130, 129, np.nan, "128x256x64/c2"),
        (17, 16, np.nan, "16x64x64/swap"),
    ):
        x = np.full((tokens, 136), neighbour, BF16)
        x[place] = row[0]
        with wgmma(tile, segment=64):
            testing.assert_same_bits(gl.linear(x, w)[place], alone[0])


def test_slices_of_the_weight_slice_the_result() -> None:  # D3
    x, w = testing.normal((5, 136), BF16, 0), testing.normal((70, 136), BF16, 1)
    with wgmma(segment=64):
        y = gl.linear(x, w)
        for part in (slice(0, 1), slice(3, 40), slice(64, 70)):
            testing.assert_same_bits(gl.linear(x, w[part]), y[:, part])


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_splits_of_k_give_the_same_bits(dtype: Any) -> None:  # D4
    x, w = testing.normal((70, 200), dtype, 0), testing.normal((72, 200), dtype, 1)
    bits = []
    for splits in (1, 4):
        with wgmma(segment=64, splits=splits):
            bits.append(gl.linear(x, w, activation="gelu"))
    assert [name for name, _ in last_results()] == ["gemm_wgmma", "ordered_reduce"]
    testing.assert_same_bits(bits[1], bits[0])


def test_any_number_of_sms_gives_the_same_bits() -> None:  # D5
    x, w = testing.normal((200, 136), BF16, 0), testing.normal((136, 136), BF16, 1)
    results = []
    for sms, tile in ((1, SMALL), (5, SMALL), (132, SMALL), (1, "128x128x64"), (3, "128x256x64/c2")):
        with wgmma(tile, segment=64, num_sms=sms):
            results.append(gl.linear(x, w))
    for other in results[1:]:
        testing.assert_same_bits(other, results[0])


def test_micro_batches_accumulate_to_the_same_bits() -> None:  # D6
    tokens, step = 152, 64
    dy, x = testing.normal((tokens, 40), BF16, 0), testing.normal((tokens, 48), BF16, 1)
    whole, parts = np.zeros((40, 48), np.float32), np.zeros((40, 48), np.float32)
    with wgmma(segment=step):
        gl.wgrad(dy, x, out=whole, accumulate=True)
        for start in range(0, tokens, step):
            gl.wgrad(dy[start : start + step], x[start : start + step], out=parts, accumulate=True)
    testing.assert_same_bits(parts, whole)


@pytest.mark.parametrize("view", testing.VIEWS)
def test_any_view_gives_what_the_copy_gives(view: str) -> None:
    make = testing.VIEWS[view]
    x, w, dy = ints(9, 40), ints(16, 40, seed=1), ints(9, 16, seed=2)
    with wgmma():
        for call, operands in ((gl.linear, (x, w)), (gl.dgrad, (dy, w)), (gl.wgrad, (dy, x))):
            testing.assert_same_bits(call(*(make(a, np) for a in operands)), call(*operands))


def test_outputs_at_any_place_and_nothing_beside_them() -> None:
    """Aligned rows are stored by TMA, others from registers; what surrounds them keeps its bytes."""
    x, w = ints(70, 40), ints(66, 40, seed=1)
    want = (f8(x) @ f8(w).T).astype(BF16)
    for first, width in ((8, 96), (3, 91)):
        buffer = np.full((70, width), np.nan, BF16)
        with wgmma():
            gl.linear(x, w, out=buffer[:, first : first + 66])
        testing.assert_same_bits(buffer[:, first : first + 66], want)
        around = np.delete(buffer, np.s_[first : first + 66], axis=1)
        assert np.isnan(around.astype(np.float32)).all()


def test_special_values_go_where_they_must() -> None:
    x, w = testing.normal((4, 40), BF16, 0), testing.normal((8, 40), BF16, 1)
    x[1, 3], x[2, 4], w[3, 4] = np.nan, np.inf, 0.0
    with np.errstate(invalid="ignore"):
        exact = f8(x) @ f8(w).T
    with wgmma():
        y = f8(gl.linear(x, w))
    assert np.array_equal(np.isnan(y), np.isnan(exact))
    assert np.array_equal(np.isposinf(y), np.isposinf(exact)) and np.array_equal(np.isneginf(y), np.isneginf(exact))
