"""dgrad and wgrad in one launch: the bits of two launches, for every family and dtype, under every sanitizer and schedule.

Segments are short, so that K of several segments stays small. A finding is an error in any test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpulinear as gl
from gpulinear import gemm, testing
from gpulinear.backends.emulator import last_results
from gpulinear.launch import launches
from gpulinear.plan import Options

from .layers import f8

Array = np.ndarray[Any, Any]
Shape = tuple[int, int, int]
BF16 = np.dtype(ml_dtypes.bfloat16)
F16, F32, F64 = np.dtype("float16"), np.dtype("float32"), np.dtype("float64")


@pytest.fixture(autouse=True)
def emulator(compiled: None) -> Iterator[None]:
    with gl.host_backend("emulator", arch="sm_90a"):
        yield


def backward(shape: Shape, dtype: Any, joint: bool, options: dict[str, Any], **settings: Any) -> Any:
    """The gradients of a layer (tokens, out, in), with or without a joint launch; outputs that are added to are fresh."""
    tokens, out, inner = shape
    dy, x, w = (
        testing.normal(size, dtype, seed) for seed, size in enumerate([(tokens, out), (tokens, inner), (out, inner)])
    )
    for name in ("dw_out", "db_out"):
        if name in settings:
            settings[name] = settings[name].copy()
    with gemm.planning(Options(joint=joint, **options)):
        grads = gl.linear_backward(dy, x, w, **settings)
    names = [name for name, _ in last_results()]
    assert any(name.startswith("joint_") for name in names) == joint, names
    return grads


def check(shape: Shape, dtype: Any, *, options: dict[str, Any], **settings: Any) -> None:
    """Whatever the tile of the joint launch, two launches of the smallest one give the same bits."""
    tiled = options.get("family") == "gemm_wgmma" and "tile" in options
    small = {**options, "tile": WGMMA["tile"]} if tiled else options
    together = backward(shape, dtype, True, options, **settings)
    apart = backward(shape, dtype, False, small, **settings)
    for got, want in zip(together, apart, strict=True):
        if want is None:
            assert got is None
        else:
            testing.assert_same_bits(got, want)


SIMT = {"family": "gemm_simt", "tile": "32x32x16/4x4", "segment": 32}
MMA = {"family": "gemm_mma", "tile": "64x64x32/32x32", "segment": 64}
WGMMA = {"family": "gemm_wgmma", "tile": "64x64x64", "segment": 64, "num_sms": 3}

# More tiles than CTAs; several segments for both, for wgrad, for dgrad, for none.
SHAPES = [(136, 200, 72), (200, 40, 72), (40, 200, 72), (40, 56, 136)]
FAMILIES = pytest.mark.parametrize(
    ("dtype", "options"), [(F32, SIMT), (BF16, MMA), (BF16, WGMMA)], ids=["simt", "mma", "wgmma"]
)


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [(shape, BF16, WGMMA) for shape in SHAPES]
    + [(SHAPES[1], F64, {**MMA, "tile": "32x32x8/16x32"})]
    + [(SHAPES[0], F32, SIMT), (SHAPES[1], BF16, MMA)],
    ids=lambda value: value["family"] if isinstance(value, dict) else str(value),
)
def test_one_launch_gives_the_bits_of_two(shape: Shape, dtype: Any, options: dict[str, Any]) -> None:
    check(shape, dtype, options=options)


@pytest.mark.parametrize("shape", [(1, 8, 65), (65, 3, 67)], ids=str)
@FAMILIES
def test_ragged_edges_and_operands_that_are_copied(dtype: Any, options: dict[str, Any], shape: Shape) -> None:
    check(shape, dtype, options=options)


@pytest.mark.parametrize(
    ("arch", "family", "precision", "splits"),
    [
        ("sm_80", "gemm_mma", "tf32", 0),
        ("sm_80", "gemm_mma", "bf16x6", 3),
        ("sm_90a", "gemm_wgmma", "bf16x6", 3),
        ("sm_90a", "gemm_wgmma", "tf32x3", 4),
    ],
)
def test_the_precisions_of_tensor_cores(arch: str, family: str, precision: str, splits: int) -> None:
    """Operands are split before the launch; both gradients read one split of dy where its planes may keep their major."""
    with gl.host_backend("emulator", arch=arch):
        check((70, 40, 72), F32, options={"family": family}, precision=precision, needs=("dx", "dw"))
    assert [name for name, _ in last_results()].count("split_planes") == splits


def test_an_arch_without_cp_async() -> None:
    with gl.host_backend("emulator", arch="sm_75"):
        check((40, 33, 37), F32, options={"family": "gemm_simt"})
        check((40, 40, 72), F16, options={"family": "gemm_mma"})


@pytest.mark.parametrize(
    ("dtype", "options", "splits"), [(F32, SIMT, 2), (BF16, MMA, 3), (BF16, WGMMA, 4)], ids=["simt", "mma", "wgmma"]
)
def test_splits_of_k_are_finished_after_the_launch(dtype: Any, options: dict[str, Any], splits: int) -> None:
    shape = (200, 200, 72)
    want = backward(shape, dtype, False, options, needs=("dx", "dw"))
    got = backward(shape, dtype, True, {**options, "splits": splits}, needs=("dx", "dw"))
    assert [name for name, _ in last_results()][-2:] == ["ordered_reduce"] * 2
    testing.assert_same_bits(got.dx, want.dx)
    testing.assert_same_bits(got.dw, want.dw)


@pytest.mark.parametrize(
    ("schedule", "dtype", "options"),
    [
        ("random:0", F32, SIMT),
        ("random:0", BF16, MMA),
        *((name, BF16, WGMMA) for name in ("warps", "random:0", "random:1")),
    ],
    ids=lambda value: value["family"] if isinstance(value, dict) else str(value),
)
def test_every_schedule_gives_the_same_bits(
    schedule: str, dtype: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (72, 136, 72)
    want = backward(shape, dtype, False, options)
    monkeypatch.setenv("GPULINEAR_EMULATOR_SCHEDULE", schedule)
    for got, exact in zip(backward(shape, dtype, True, options), want, strict=True):
        testing.assert_same_bits(got, exact)


@pytest.mark.parametrize("sms", [1, 5, 132])
def test_any_number_of_sms_gives_the_same_bits(sms: int) -> None:  # D5
    check((136, 136, 136), BF16, options={**WGMMA, "num_sms": sms}, needs=("dx", "dw"))


@pytest.mark.parametrize("tile", ["128x256x64/c2", "64x256x64", "64x64x64/swap"])
def test_the_tiles_of_wgmma(tile: str) -> None:
    """Clusters, two consumers, totals in shared memory beside stores by TMA; more items than CTAs."""
    check((264, 200, 328), BF16, options={**WGMMA, "tile": tile, "num_sms": 4}, needs=("dx", "dw"))


@pytest.mark.parametrize(
    ("out_dtype", "options"),
    [(F32, MMA), (BF16, WGMMA), (F32, WGMMA), (F32, {**WGMMA, "tile": "64x256x64"})],
    ids=["mma", "wgmma-bfloat16", "wgmma", "totals in shared memory"],
)
def test_weight_gradients_are_added_to(out_dtype: Any, options: dict[str, Any]) -> None:
    """dw and db in either dtype; dx, whose launch it is too, is only written."""
    shape = (136, 72, 200)
    held = testing.normal((72, 200), out_dtype, 5), testing.normal((72,), out_dtype, 6)
    check(shape, BF16, options=options, dw_out=held[0], db_out=held[1], accumulate=True)


def test_micro_batches_accumulate_to_the_same_bits() -> None:  # D6
    dy, x, w = (testing.normal(shape, BF16, seed) for seed, shape in enumerate([(152, 72), (152, 80), (72, 80)]))
    whole, parts = np.zeros((72, 80), np.float32), np.zeros((72, 80), np.float32)
    with gemm.planning(Options(joint=True, **WGMMA)):
        gl.linear_backward(dy, x, w, needs=("dx", "dw"), dw_out=whole, accumulate=True)
        for start in range(0, 152, 64):
            part = slice(start, start + 64)
            gl.linear_backward(dy[part], x[part], w, needs=("dx", "dw"), dw_out=parts, accumulate=True)
    testing.assert_same_bits(parts, whole)


@pytest.mark.parametrize("needs", [("dx",), ("dw",), ("db",), ("dx", "db"), ("dw", "db"), ("dx", "dw"), ()])
def test_what_is_not_needed_is_not_computed(needs: tuple[str, ...]) -> None:
    shape, both = (40, 24, 40), {"dx", "dw"} <= set(needs)
    grads = backward(shape, F32, True, SIMT, needs=needs) if both else None
    with gemm.planning(Options(joint=True, **SIMT)):
        operands = [testing.normal(size, F32, seed) for seed, size in enumerate([(40, 24), (40, 40), (24, 40)])]
        got = gl.linear_backward(*operands, needs=needs)
        assert (gl.explain("linear_backward", *operands, needs=needs).joint is not None) == both
    assert [name for name in ("dx", "dw", "db") if getattr(got, name) is not None] == [
        name for name in ("dx", "dw", "db") if name in needs
    ]
    if grads is not None:
        testing.assert_same_bits(got.dw, grads.dw)


def test_a_recorder_sees_one_launch_by_its_name() -> None:
    with launches() as counted:
        backward((40, 24, 40), F32, True, SIMT, needs=("dx", "dw"))
    assert dict(counted) == {"joint_gemm_simt 32x32x16/4x4": 1}


def test_activations_have_their_gradient_before_it() -> None:
    shape = (72, 56, 40)
    preact = testing.normal((72, 56), BF16, 4)
    check(shape, BF16, options=WGMMA, activation="gelu", preact=preact, needs=("dx", "dw"))
    assert [name for name, _ in last_results()] == ["act_grad", "gemm_wgmma", "gemm_wgmma"]


def test_empty_gradients_have_no_joint_launch() -> None:
    with gemm.planning(Options(joint=True)):
        for shape in ((0, 8, 8), (8, 0, 8), (8, 8, 0)):
            tokens, out, inner = shape
            dy, x, w = np.ones((tokens, out), F32), np.ones((tokens, inner), F32), np.ones((out, inner), F32)
            grads = gl.linear_backward(dy, x, w)
            assert grads.dx.shape == (tokens, inner) and not grads.dx.any() and not grads.dw.any()
            assert "joint" not in " ".join(name for name, _ in last_results())


@pytest.mark.parametrize("view", testing.VIEWS)
def test_any_view_gives_what_the_copy_gives(view: str) -> None:
    make = testing.VIEWS[view]
    dy, x, w = (testing.integers(shape, BF16, seed) for seed, shape in enumerate([(9, 16), (9, 40), (16, 40)]))
    with gemm.planning(Options(joint=True, **WGMMA)):
        grads = gl.linear_backward(*(make(a, np) for a in (dy, x, w)))
    testing.assert_same_bits(grads.dx, (f8(dy) @ f8(w)).astype(BF16))
    testing.assert_same_bits(grads.dw, (f8(dy).T @ f8(x)).astype(BF16))
    testing.assert_same_bits(grads.db, f8(dy).sum(0).astype(BF16))


@FAMILIES
def test_outputs_at_any_place_and_nothing_beside_them(dtype: Any, options: dict[str, Any]) -> None:
    """What surrounds an output keeps its bytes; a neighbour of an operand never reaches a result."""
    tokens, out, inner = 70, 72, 66
    wide = {name: np.full(size, np.nan, dtype) for name, size in (("dx", (tokens, 96)), ("dw", (out, 91)))}
    places = {"dx_out": wide["dx"][:, 8 : 8 + inner], "dw_out": wide["dw"][:, 3 : 3 + inner]}
    held = [np.full((rows, 104), np.nan, dtype) for rows in (tokens, tokens, out)]
    dy, x, w = held[0][:, 8:80], held[1][:, 16 : 16 + inner], held[2][:, 24 : 24 + inner]
    for seed, a in enumerate((dy, x, w)):
        a[...] = testing.integers(a.shape, dtype, seed)
    with gemm.planning(Options(joint=True, **options)):
        gl.linear_backward(dy, x, w, needs=("dx", "dw"), **places)
    testing.assert_same_bits(places["dx_out"], (f8(dy) @ f8(w)).astype(dtype))
    testing.assert_same_bits(places["dw_out"], (f8(dy).T @ f8(x)).astype(dtype))
    for name, first in (("dx", 8), ("dw", 3)):
        around = np.delete(wide[name], np.s_[first : first + inner], axis=1)
        assert np.isnan(around.astype(np.float32)).all()
